"""The errors of `spct_kernels`. Each message says what was wrong, what was expected, what was got and what to do."""


class KernelError(Exception):
    """Base of every error that `spct_kernels` raises on purpose."""


class InputError(KernelError):
    """A tensor's shape, dtype, layout or content, or an option, is not what the op takes."""


class BackendError(KernelError):
    """A backend is missing on this machine or in this build, or does not fit the tensors' device."""
