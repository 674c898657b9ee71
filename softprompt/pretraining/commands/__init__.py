"""The commands of the pre-training: `vocabulary`, `pretrain` and `adapt`."""
