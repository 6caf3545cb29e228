"""The suite that holds a transport to its promises."""

from heartbeat_core.testing._attending import Attending
from heartbeat_core.testing._carrying import Carrying
from heartbeat_core.testing._contending import Contending
from heartbeat_core.testing._outages import Outages
from heartbeat_core.testing._remembering import Remembering

__all__ = ("TransportConformance",)


class TransportConformance(Carrying, Remembering, Attending, Contending, Outages):
    """Tests each promise of :class:`~heartbeat_core.Transport` on a transport of yours.

    Derive a class from it whose name your test runner looks for, and say how transports are made::

        @pytest.mark.anyio
        class TestMine(TransportConformance):
            @asynccontextmanager
            async def transports(self):
                yield lambda namespace: MyTransport("mine://localhost", namespace=namespace)

    pytest runs it with anyio's plugin, on asyncio and on trio where both are installed. The
    tests are plain coroutine methods, which any other runner may call, one instance a test. What
    your transport cannot do (last beats, presence, seats), and what you do not say how to do
    (:meth:`cut`, :meth:`stop`), is skipped: it raises ``unittest.SkipTest``.

    It wants a broker close by, that loses nothing and is as fast as a healthy one, but need not
    be empty: each test takes namespaces that nobody has used before.

    Attributes:
        timeout: No test takes longer than so many seconds, and nothing that is waited for longer
            than half of that.
        grace: For so many seconds it is watched whether something comes that must not.
    """
