import pytest

from softprompt.tasks import Example, get_task, mixed, mixture

RTE, SST2, SQUAD = (get_task(name) for name in ("superglue/rte", "glue/sst2", "mrqa/squad"))


def example(targets, id="1", **changes):
    return Example(inputs="it is warm", targets=targets, id=id, references=(targets,), **changes)


def test_an_example_has_its_tasks_name_in_front_and_its_labels_to_choose_from():
    own = mixed(RTE, example("entailment", "7"))
    assert (own.inputs, own.id, own.choices) == ("rte it is warm", "superglue/rte 7", ("entailment", "not_entailment"))
    assert mixed(SQUAD, example("she")).choices is None


def test_each_task_scores_its_own_examples_by_its_own_rules():
    task = mixture([RTE, SST2])
    examples = [mixed(RTE, example("entailment")), mixed(SST2, example("positive")), mixed(SST2, example("negative"))]
    assert task.name == "superglue/rte + glue/sst2"
    assert task.metrics(["entailment", "positive", "positive"], examples) == {"superglue/rte": 1.0, "glue/sst2": 0.5}
    assert task.metrics(["negative"], examples[2:]) == {"glue/sst2": 1.0}
    assert task.answer("positive", examples[0]) is None and task.answer("positive", examples[1]) == "positive"


def test_a_mixture_has_no_records():
    with pytest.raises(ValueError, match="a mixture has no records of its own; read those of its tasks"):
        mixture([RTE]).cast({}, "train")
