"""The commands of the study: `compare`, `experiment`, `report`, `rerun` and `params`."""
