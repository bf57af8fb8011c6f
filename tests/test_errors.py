import pytest

from vramkit import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_every_exception_is_a_vramkit_error(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.VramkitError)


def test_all_lists_every_exception() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert defined == set(errors.__all__)


@pytest.mark.parametrize(
    ("exception", "builtin"),
    [
        (errors.CapacityError, ValueError),
        (errors.InvalidArgumentError, ValueError),
        (errors.UnsupportedDeviceError, NotImplementedError),
        (errors.PoolOutOfMemoryError, MemoryError),
        (errors.PoolClosedError, RuntimeError),
        (errors.PoolBusyError, RuntimeError),
        (errors.ForkedPoolError, RuntimeError),
        (errors.ForeignPointerError, ValueError),
        (errors.DoubleFreeError, RuntimeError),
        (errors.SystemCallError, OSError),
        (errors.NativeLibraryError, ImportError),
        (errors.MissingExtraError, ImportError),
        (errors.ArgumentTypeError, TypeError),
        (errors.ScopeError, RuntimeError),
        (errors.TraceError, ValueError),
        (errors.UntraceableError, RuntimeError),
        (errors.CalibrationError, RuntimeError),
    ],
)
def test_builtin_bases_and_texts(exception: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(exception, builtin)
    assert str(exception("a text of 3 numbers")) == "a text of 3 numbers"
