"""The app of the schedulers: one task, every second."""

import os

import celery.beat
from lost_app import app

__all__ = ("app",)

app.conf.beat_schedule = {"often": {"task": "sleep", "schedule": 1.0, "args": (0, 0.0)}}

if os.environ.get("BEAT_THREAD") == "1":
    # As where there is no fork.
    celery.beat._Process = None


class Failing(celery.beat.PersistentScheduler):
    """A scheduler that crashes when it has sent some tasks."""

    def tick(self, *args: object, **kwargs: object) -> float:
        """Send what is due."""
        if self.schedule["often"].total_run_count > 2:
            raise RuntimeError("this scheduler fails")
        return float(super().tick(*args, **kwargs))
