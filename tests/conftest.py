"""Hypothesis without chance; accuracy.json written on request."""

import os

import numerics
from hypothesis import settings

settings.register_profile("attnpy", derandomize=True, deadline=None, database=None)
settings.load_profile("attnpy")


def pytest_sessionfinish(session, exitstatus):
    if os.environ.get("ATTNPY_RECORD_ACCURACY"):
        numerics.save()
