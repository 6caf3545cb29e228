"""What the result backend is told of tasks that ended with their workers.

Everything goes through the app's own backend, as when Celery itself finds a child process lost: so
``get()`` raises, and ``link_error``, chords and chains react.
"""

import base64
import logging
from typing import Any

import attrs
from celery import Celery, states
from celery.app.task import Context
from celery.exceptions import WorkerLostError
from kombu.message import Message
from kombu.serialization import prepare_accept_content

from heartbeat_celery._gate import unguarded
from heartbeat_celery._verdicts import Verdict

__all__ = ("Results",)

logger = logging.getLogger("heartbeat_celery")

SAY_NOTHING = ("disabled://", "rpc://")
"""Backends that cannot be asked for a result: there is none, or only its caller may take it."""


@attrs.frozen
class Results:
    """Tells an app's result backend. Its methods block, and raise whatever the backend raises."""

    app: Celery

    def has_ended(self, verdict: Verdict) -> bool:
        """Tell whether a task had ended before its worker did, as far as its result says."""
        state, result = self._stored(verdict)
        return state in states.READY_STATES and str(result) != verdict.reason

    def is_stored(self, verdict: Verdict) -> bool:
        """Tell whether a verdict is the task's result, or cannot be asked for anyway."""
        if not (self._stores(verdict) and self._can_be_asked(verdict)):
            return True
        state, result = self._stored(verdict)
        return state in states.READY_STATES and str(result) == verdict.reason

    def fail(self, verdict: Verdict) -> None:
        """Make the result of a task a failure, and tell all that hang on it.

        Error callbacks that take a task's request run here and now, as they do in a worker that
        loses a child process.
        """
        if not verdict.task_id:
            return
        self.app.set_current()  # For this thread: the callbacks may ask for it.
        backend: Any = self._backend(verdict)
        unguarded(backend.mark_as_failure)(
            verdict.task_id,
            WorkerLostError(verdict.reason),
            request=self._request(verdict),
            store_result=self._stores(verdict),
        )

    def store(self, verdict: Verdict) -> None:
        """Make the result of a task a failure, and tell nobody else."""
        if verdict.task_id and self._stores(verdict):
            exc = WorkerLostError(verdict.reason)
            self._backend(verdict).store_result(verdict.task_id, exc, states.FAILURE)

    def _stored(self, verdict: Verdict) -> tuple[str, Any]:
        if not self._can_be_asked(verdict):
            return states.PENDING, None
        meta = self._backend(verdict).get_task_meta(verdict.task_id, cache=False)
        return meta["status"], meta.get("result")

    def _can_be_asked(self, verdict: Verdict) -> bool:
        return bool(verdict.task_id) and self._backend(verdict).as_uri() not in SAY_NOTHING

    def _backend(self, verdict: Verdict) -> Any:
        task = self.app.tasks.get(verdict.task)
        return self.app.backend if task is None else task.backend

    def _stores(self, verdict: Verdict) -> bool:
        """Tell whether the failures of a task are kept, as Celery does."""
        task: Any = self.app.tasks.get(verdict.task)
        ignored = verdict.message["headers"].get("ignore_result")
        if ignored is None:
            ignored = getattr(task, "ignore_result", False)
        return not ignored or bool(getattr(task, "store_errors_even_if_ignored", False))

    def _request(self, verdict: Verdict) -> Context:
        """Build what Celery knows of a task while it runs."""
        message = verdict.message
        properties = message.get("properties") or {}
        info = properties.get("delivery_info") or {}
        request = {
            **message["headers"],
            "properties": properties,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "hostname": verdict.node,
            "delivery_info": {
                "exchange": info.get("exchange"),
                "routing_key": info.get("routing_key"),
                "priority": properties.get("priority"),
                "redelivered": True,
            },
            "is_eager": False,
        }
        try:
            request |= self._body(message)
        except Exception as exc:  # noqa: BLE001 - a body and its codec may raise anything
            logger.error(
                "heartbeat: the body of task %s[%s] cannot be read, so its error callbacks, its "
                "chord and its chain are not told: %r",
                verdict.task,
                verdict.task_id,
                exc,
                extra={"heartbeat_task": verdict.task, "heartbeat_task_id": verdict.task_id},
            )
        return Context(request)

    def _body(self, message: dict[str, Any]) -> dict[str, Any]:
        """Decode a body, if it is of a kind that a worker of the app would decode."""
        properties = message.get("properties") or {}
        body = message["body"]
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body)
        decoded = Message(
            body,
            content_type=message.get("content-type"),
            content_encoding=message.get("content-encoding"),
            properties=properties,
            headers=message["headers"],
            accept=prepare_accept_content(self.app.conf.accept_content),
            postencode="utf-8",
        )
        args, kwargs, embed = decoded.payload
        return {**(embed or {}), "args": args, "kwargs": kwargs}
