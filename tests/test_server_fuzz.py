"""Every endpoint of the OpenAPI document, asked at random: never a 5xx but those the document names."""

import contextlib

import pytest
import schemathesis
from conftest import tiny_lm
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import status_code_conformance
from test_server import listening, make_server

from softprompt.serving.http.wire import Limits


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    server = make_server(tiny_lm("llama"), tmp_path_factory.mktemp("fuzz"), limits=Limits(timeout=5.0))
    server.warm_up = lambda: setattr(server, "is_ready", True)
    with listening(server) as address:
        yield schemathesis.openapi.from_url(f"{address}openapi.json")


SETTINGS = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_no_request_breaks_the_server(document):
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    asked = 0
    for found in document.get_all_operations():
        operation = found.ok()
        for mode in modes:

            @SETTINGS
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case):
                nonlocal asked
                answer = case.call()
                case.validate_response(answer, checks=[not_a_server_error, status_code_conformance])
                asked += 1

            with contextlib.suppress(Unsatisfiable):  # nothing can be wrong with a request that takes nothing
                ask()
    assert asked > 400
