"""Training of all weights of a T5 on plain text: corpus, vocabulary, objectives, new models, loop and commands.

The product never imports it.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.pretraining.corpus import corpus_files, read_documents, tokenized
    from softprompt.pretraining.loop import Machine, check_processes, pretrain
    from softprompt.pretraining.new_t5 import new_model, read_model
    from softprompt.pretraining.settings import PRESETS, PretrainConfig
    from softprompt.pretraining.vocabulary import train_vocabulary

__getattr__, __all__ = face(__name__)
