"""A warm process whose workers run the runner's stand-in for train.py: `… STAND-IN`."""

import os
import signal
import subprocess
import sys

from experiments.warm import serve

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    program = sys.argv[1]

    def run(words: list[str]) -> None:
        """Ends as the stand-in does, by a signal too."""
        with open(f"{words[0]}/worker", "a") as file:
            print(os.getpid(), file=file)
        # A signal waits until the program is known here: it would be left behind.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        process = subprocess.Popen([program, "train.py", *words])
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            status = process.wait()
        finally:
            process.kill()
        if status < 0:
            os.kill(os.getpid(), -status)
        if status:
            raise SystemExit(status)

    serve(run)


if __name__ == "__main__":
    main()
