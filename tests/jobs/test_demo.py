"""`clvr demo` says from which weights it starts."""

import logging

import pytest

from jobs import demo


def test_the_demo_without_the_weights_starts_at_random_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(demo.logger, "propagate", True)
    monkeypatch.setattr(demo, "START", "resnet50")  # its weights are on a hub, and in no package
    with caplog.at_level(logging.INFO, demo.logger.name):
        assert not demo.has_pretrained_weights()
    assert "random weights" in caplog.text
    assert "clvr-archive[lite]" in caplog.text
