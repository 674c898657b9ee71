"""Every task by its name."""

from softprompt.base.names import nearest
from softprompt.tasks import classification, glue, mrqa, superglue
from softprompt.tasks.task import Task

TASKS: dict[str, Task] = {
    "superglue/boolq": superglue.BOOLQ,
    "superglue/cb": superglue.CB,
    "superglue/copa": superglue.COPA,
    "superglue/multirc": superglue.MULTIRC,
    "superglue/record": superglue.RECORD,
    "superglue/rte": superglue.RTE,
    "superglue/wic": superglue.WIC,
    "superglue/wsc": superglue.WSC,
    "superglue/axb": superglue.AXB,
    "superglue/axg": superglue.AXG,
    "glue/mrpc": glue.MRPC,
    "glue/qqp": glue.QQP,
    "glue/sst2": glue.SST2,
    "glue/rte": glue.RTE,
    "glue/cola": glue.COLA,
    "glue/stsb": glue.STSB,
    "glue/qnli": glue.QNLI,
    "glue/mnli": glue.MNLI,
    "glue/mnli_mismatched": glue.MNLI_MISMATCHED,
    "glue/wnli": glue.WNLI,
    "mrqa/squad": mrqa.SQUAD,
    "squad/v1.1": mrqa.SQUAD_V1_1,
    "mrqa/newsqa": mrqa.NEWSQA,
    "mrqa/triviaqa": mrqa.TRIVIAQA,
    "mrqa/searchqa": mrqa.SEARCHQA,
    "mrqa/hotpotqa": mrqa.HOTPOTQA,
    "mrqa/natural_questions": mrqa.NATURAL_QUESTIONS,
    "mrqa/bioasq": mrqa.BIOASQ,
    "mrqa/drop": mrqa.DROP,
    "mrqa/duorc": mrqa.DUORC,
    "mrqa/race": mrqa.RACE,
    "mrqa/relation_extraction": mrqa.RELATION_EXTRACTION,
    "mrqa/textbookqa": mrqa.TEXTBOOKQA,
    "classification/sentence_polarity": classification.SENTENCE_POLARITY,
    "classification/subjectivity": classification.SUBJECTIVITY,
    "classification/ag_news": classification.AG_NEWS,
}


def get_task(name: str) -> Task:
    """The task of this name; capitals, '-' and '_' do not matter, and the suite only where two have the task.

    Raises ValueError with the nearest name if there is none, or with the names there are if several fit.
    """
    if name in TASKS:
        return TASKS[name]
    wanted = _plain(name)
    found = [known for known in TASKS if wanted in (_plain(known), _plain(known.split("/")[1]))]
    if len(found) == 1:
        return TASKS[found[0]]
    if found:
        raise ValueError(f"several tasks are named '{name}': {' and '.join(found)}; give the full name")
    bare = {known.split("/")[1]: known for known in TASKS}
    hint = nearest(name.lower(), [*TASKS, *bare] if "/" not in name else TASKS)
    raise ValueError(f"no task named '{name}'{hint}")


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
