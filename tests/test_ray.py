"""Ray: where it is reached."""

import pytest

from softprompt.cluster import ray_cluster


def test_ray_is_started_once_and_an_address_that_does_not_answer_is_told_at_once(ray_here):
    with ray_cluster(None):
        import ray

        assert ray.cluster_resources()["CPU"] == 2
    assert ray.is_initialized()
    for address, reason in (
        ("127.0.0.1:1", r"no Ray answers at 127.0.0.1:1 \(Connection refused\); start one there"),
        ("here", "--address is 'here'; give HOST:PORT, or auto"),
    ):
        with pytest.raises(ValueError, match=reason), ray_cluster(address):
            pass
