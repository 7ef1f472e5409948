"""The server crashes, by SIGQUIT or SIGKILL of its first process, and is started again."""

from tests.faults.stage import Stage


def torment(stage: Stage) -> None:
    for _ in stage.moments(0.5, 1.5):
        how = stage.dice.choice(["SIGQUIT", "SIGKILL"])
        stage.fault("crash", how=how)
        if how == "SIGKILL":
            stage.server.kill()
        else:
            stage.server.stop("immediate")
        stage.server.start()
        stage.fault("back")
