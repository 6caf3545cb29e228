"""Signals: what a worker's heartbeat saw and did, for those who connect to them.

They are Celery signals, connected as Celery's own are, with the app as their sender::

    from heartbeat_celery.signals import task_lost

    @task_lost.connect
    def tell_somebody(sender, task_id, task, node, **kwargs): ...

A receiver runs in a thread of the heartbeat's, beside whatever the worker does. It may block, but
the signals after it wait for it. If it raises, Celery logs that, and nothing else happens. As
Celery says, receivers take ``**kwargs``, since arguments may be added.

The signals of nodes are sent by each worker that observes, of all that it sees; the signals of
tasks by the one worker that did what they tell, wherever the task was. What the arguments mean is
the same everywhere:

* ``node`` is a worker's name, and ``incarnation`` the number of its life;
* ``cause`` is a word, such as ``"connection closed"``; ``silence`` is in seconds; ``reason`` is one
  sentence for people;
* ``task_id`` and ``task`` are the id and the name of a task, empty if its message has none;
  ``queue`` is where its message came from, and ``recoveries`` how often it has been recovered;
  ``node`` and ``incarnation`` are those that held it.
"""

from celery.utils.dispatch import Signal

__all__ = (
    "fenced",
    "node_alive",
    "node_dead",
    "node_left",
    "node_suspect",
    "task_dead_lettered",
    "task_lost",
    "task_recovered",
)

_NODE = ("node", "incarnation", "cause", "silence", "reason")
_TASK = ("task_id", "task", "node", "incarnation", "queue", "recoveries")

node_alive = Signal(name="node_alive", providing_args=_NODE)
"""A node beats: for the first time, again after a suspicion, or in a new life."""

node_suspect = Signal(name="node_suspect", providing_args=_NODE)
"""A node may be dead."""

node_dead = Signal(name="node_dead", providing_args=_NODE)
"""An incarnation was declared dead; what it held is recovered now."""

node_left = Signal(name="node_left", providing_args=_NODE)
"""A node said goodbye."""

fenced = Signal(name="fenced", providing_args=_NODE)
"""This worker itself was declared dead, as this incarnation, and comes back as a larger one."""

task_recovered = Signal(name="task_recovered", providing_args=_TASK)
"""A message that a dead worker held is back in its queue."""

task_lost = Signal(name="task_lost", providing_args=(*_TASK, "reason"))
"""A task that was acknowledged early is gone with its worker; its result is a failure now."""

task_dead_lettered = Signal(name="task_dead_lettered", providing_args=(*_TASK, "reason"))
"""A message has outlived as many owners as it may; its task's result is a failure now."""
