"""The errors that callers meet. Each message says what was wrong, what was expected, what was got and what to do."""


class SpctError(Exception):
    """Base of every error that `spct` raises on purpose."""


class ConfigError(SpctError):
    """An option, a flag or a combination of them makes no sense, or names something that is not built."""


class InputError(SpctError):
    """A request, a row or a tensor is malformed."""


class CheckpointError(SpctError):
    """A model folder can't be loaded; the message names the file and, where there is one, the tensor."""


class CapacityError(SpctError):
    """The request is well formed but can never fit: past the context, the KV memory or a limit."""


class BackendError(SpctError):
    """A kernel backend or a device is missing, or it failed."""
