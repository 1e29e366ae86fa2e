# SPDX-License-Identifier: GPL-2.0-or-later
"""`run --busy-poll`: waits that look before they sleep are waits as before, to the signal."""

import os
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.apps.harness import (
    PATIENCE_S,
    fastsocket_command,
    library_environment,
    on_cpu,
    python_server,
    say,
    wait_until,
)

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

PORT = 8080
LONGEST_US = "1000"
PROGRAMS, SIGNALS = 20, 10
LOOKING_S = 0.0003  # until a wait surely looks and surely does not sleep yet
POLLED = 64  # waits that are counted at once

# Waits without a limit, and each has to end by a signal. With "masked" only the wait lets it in;
# with "threads" there is another thread that could handle it, and waits may end without a signal.
# What was blocked before a wait is what is blocked after it.
SIGNALLED = """
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

static volatile int handled;

static void handler(int number)
{
    handled++;
}

static void *idle(void *argument)
{
    for (;;)
        pause();
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = handler};
    int epfd = epoll_create1(0), masked = !strcmp(argv[1], "masked");
    int threads = !strcmp(argv[1], "threads");
    struct epoll_event event;
    sigset_t before, now, open;
    pthread_t other;

    if (threads && pthread_create(&other, NULL, idle, NULL))
        return 4;
    sigemptyset(&open);
    sigemptyset(&before);
    sigaddset(&before, masked ? SIGUSR1 : SIGUSR2);
    sigprocmask(SIG_SETMASK, &before, NULL);
    sigaction(SIGUSR1, &action, NULL);
    for (;;) {
        int count, seen = handled;

        printf("%d\\n", seen);
        fflush(stdout);
        do
            count = masked ? epoll_pwait(epfd, &event, 1, -1, &open) :
                             epoll_wait(epfd, &event, 1, -1);
        while (threads && count == -1 && errno == EINTR && handled == seen);
        sigprocmask(SIG_SETMASK, NULL, &now);
        if (count != -1 || errno != EINTR || handled == seen)
            return 2;
        for (int number = 1; number < 32; number++)
            if (sigismember(&now, number) != sigismember(&before, number))
                return 3;
    }
}
"""
# Waits in vain as often as it is told, each time for that many milliseconds; tells how many
# milliseconds it took, and how many of a CPU.
WAITS = """
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>

static long long now(clockid_t clock)
{
    struct timespec time;

    clock_gettime(clock, &time);
    return time.tv_sec * 1000LL + time.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
    int epfd = epoll_create1(0), waits = atoi(argv[1]);
    struct epoll_event event;
    long long begin = now(CLOCK_MONOTONIC);

    for (int i = 0; i < waits; i++)
        if (epoll_wait(epfd, &event, 1, atoi(argv[2])))
            return 2;
    printf("%lld %lld\\n", now(CLOCK_MONOTONIC) - begin, now(CLOCK_PROCESS_CPUTIME_ID));
}
"""


def compiled(source: str, folder: Path) -> Path:
    program = folder / "program"
    subprocess.run(["gcc", "-x", "c", "-", "-o", program], input=source, text=True, check=True)
    return program


def polling(us: str = LONGEST_US) -> dict[str, str]:
    return {**os.environ, **library_environment(), "FASTSOCKET_BUSY_POLL": us}


def unheard(process: subprocess.Popen[bytes], patience: float) -> int:
    """Signal a program that waits, again after `patience`; return how many ended no wait."""
    lost = 0
    assert process.stdout
    for _ in range(SIGNALS):
        assert process.stdout.readline()
        time.sleep(LOOKING_S)
        process.send_signal(signal.SIGUSR1)
        while not select.select([process.stdout], [], [], patience)[0]:
            lost += 1
            process.send_signal(signal.SIGUSR1)
    return lost


@pytest.mark.parametrize("how", ["alone", "masked", "threads"])
def test_a_signal_ends_a_wait_that_looks(tmp_path: Path, how: str) -> None:
    """Were it handled while the wait looks and no more, the sleep after it would have no end.

    One that comes between the program's line and its wait is lost without us as well, except
    where the wait alone lets it in. A program begins anew before it looks less often.
    """
    command, lost = [compiled(SIGNALLED, tmp_path), how], 0
    for _ in range(PROGRAMS):
        with subprocess.Popen(command, env=polling(), stdout=subprocess.PIPE) as process:
            try:
                lost += unheard(process, PATIENCE_S if how == "masked" else 0.2)
            finally:
                process.kill()
    assert lost <= (0 if how == "masked" else PROGRAMS * SIGNALS // 10)


def waits(folder: Path, number: int, limit_ms: int) -> tuple[int, int]:
    """Return the milliseconds and the milliseconds of a CPU that such waits take."""
    command = [compiled(WAITS, folder), str(number), str(limit_ms)]
    done = subprocess.run(command, env=polling(), capture_output=True, text=True, check=True)
    took, cpu = map(int, done.stdout.split())
    return took, cpu


def test_who_looks_in_vain_soon_sleeps_at_once(tmp_path: Path) -> None:
    """Looking at each of these waits would take half a second of a CPU."""
    took, cpu = waits(tmp_path, 500, 1)
    assert took >= 500
    assert cpu < 150


def test_a_wait_keeps_its_limit(tmp_path: Path) -> None:
    """It is no shorter because it looks."""
    took, _ = waits(tmp_path, 10, 2)
    assert took >= 20


def asked(requests: int) -> int:
    for _ in range(requests):
        say(PORT, b"x")
    return requests


def test_status_tells_how_many_waits_found_something() -> None:
    """The client is on another CPU; on the worker's own it could not send while that looks."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU")
    plan = {"listen": [["127.0.0.1", PORT]], "workers": 1}
    options, prefix = ["--busy-poll", LONGEST_US], ["taskset", "-c", str(cpus[0])]
    with python_server(plan, options=options, prefix=prefix) as app, on_cpu(cpus[1]):
        wait_until(lambda: asked(POLLED) and app.status()["polled"], "waits that found something")
        shown = subprocess.run(
            fastsocket_command("status", str(app.pid)), capture_output=True, text=True, check=True
        )
        assert "busy polling for 1000 us: " in shown.stdout
        app.stop()


def test_off_unless_asked_for() -> None:
    with python_server({"listen": [["127.0.0.1", PORT]]}) as app:
        asked(2 * POLLED)
        assert app.status()["polled"] == app.status()["busy_poll_us"] == 0
        app.stop()


def test_too_long_is_refused() -> None:
    command = fastsocket_command("run", "--busy-poll", "1001", "--", "true")
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert "0<=x<=1000" in done.stderr
