"""The progress bar."""

import os
import signal
import threading

import pytest

from conceptlens.progress import bar


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_that_is_killed_while_it_draws_holds_up_no_other():
    with bar("a", 1, "pictures", hidden=True) as first:
        pid = os.fork()
        if pid == 0:
            first.get_lock().acquire()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)

    def draw():
        with bar("b", 1, "pictures", hidden=True) as another:
            another.update()

    drawing = threading.Thread(target=draw, daemon=True)
    drawing.start()
    drawing.join(10)
    assert not drawing.is_alive()
