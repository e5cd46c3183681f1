"""Environment variables that our dependencies read when they are first imported.

`set_defaults` must run before the first import of mlflow, albumentations, huggingface_hub, gradio or ray: the command
line calls it first thing, and so does every function that imports one of them. What the user has set stays.
"""

import os

DEFAULTS = {
    # Nothing calls home.
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # else it asks the package index for a newer version
    "GRADIO_ANALYTICS_ENABLED": "False",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray Tune runs whole processes of ours: it shall not log for them, and Ctrl-C is ours too.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A dead tracking server costs minutes per call by default. Training does not wait for it, 'samtune sync' does.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # Threads that wait for others spin by default: beside other work, a step then costs ten times its share.
    "OMP_WAIT_POLICY": "PASSIVE",
    # MLflow looks for git through GitPython, which warns at length where there is none.
    "GIT_PYTHON_REFRESH": "quiet",
}


def set_defaults() -> None:
    """Sets each variable of `DEFAULTS` that the environment does not have."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
