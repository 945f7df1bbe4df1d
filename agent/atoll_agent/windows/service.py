"""Runs the agent as a Windows service, with the service control manager's own API (winsvc.h).

`StartServiceCtrlDispatcherW` hands this process to the manager and returns
when the service has stopped; it calls back on a thread of its own. By ctypes,
because the agent needs nothing but Python.
"""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

NAME = "AtollAgent"

_OWN_PROCESS = 0x10
_STOPPED, _START_PENDING, _STOP_PENDING, _RUNNING = 1, 2, 3, 4
_ACCEPT_STOP, _ACCEPT_SHUTDOWN = 0x1, 0x4
_CONTROL_STOP, _CONTROL_INTERROGATE, _CONTROL_SHUTDOWN = 1, 4, 5
_NO_ERROR, _CALL_NOT_IMPLEMENTED, _SERVICE_SPECIFIC = 0, 120, 1066
_WAIT_HINT_MILLISECONDS = 30_000


class ServiceStatus(ctypes.Structure):
    """SERVICE_STATUS."""

    _fields_ = (
        ("service_type", ctypes.c_uint32),
        ("current_state", ctypes.c_uint32),
        ("controls_accepted", ctypes.c_uint32),
        ("win32_exit_code", ctypes.c_uint32),
        ("service_specific_exit_code", ctypes.c_uint32),
        ("check_point", ctypes.c_uint32),
        ("wait_hint", ctypes.c_uint32),
    )


def _callback(result: Any, *arguments: Any) -> Any:
    """WINAPI's calling convention where there is one."""
    make = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)
    return make(result, *arguments)


MainFunction = _callback(None, ctypes.c_uint32, ctypes.c_void_p)
HandlerFunction = _callback(
    ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p
)


class TableEntry(ctypes.Structure):
    """SERVICE_TABLE_ENTRYW."""

    _fields_ = (("name", ctypes.c_wchar_p), ("main", MainFunction))


class Service:
    """The agent between the manager's start and its stop; `serve` runs until the event is set."""

    def __init__(self, serve: Callable[[threading.Event], int], api: Any) -> None:
        self._serve = serve
        self._api = api
        self._stop = threading.Event()
        self._handle: Any = None
        self._state = _START_PENDING
        # Kept as long as the manager may call them.
        self._main = MainFunction(self._run)
        self._handler = HandlerFunction(self._control)

    def dispatch(self) -> None:
        """Hand this process to the manager until the service has stopped. Raises OSError."""
        table = (TableEntry * 2)(TableEntry(NAME, self._main), TableEntry(None, MainFunction(0)))
        if not self._api.StartServiceCtrlDispatcherW(table):
            raise OSError(
                "The service control manager did not start this process; "
                f"start the service with: sc start {NAME}"
            )

    def _run(self, count: int, arguments: Any) -> None:
        self._handle = self._api.RegisterServiceCtrlHandlerExW(NAME, self._handler, None)
        if not self._handle:
            return
        self._report(_RUNNING)
        status = 1
        try:
            status = self._serve(self._stop)
        finally:
            self._report(_STOPPED, status)

    def _control(self, control: int, kind: int, data: Any, context: Any) -> int:
        if control in {_CONTROL_STOP, _CONTROL_SHUTDOWN}:
            self._report(_STOP_PENDING)
            self._stop.set()
            return _NO_ERROR
        if control == _CONTROL_INTERROGATE:
            self._report(self._state)
            return _NO_ERROR
        return _CALL_NOT_IMPLEMENTED

    def _report(self, state: int, exit_status: int = 0) -> None:
        self._state = state
        status = ServiceStatus(
            service_type=_OWN_PROCESS,
            current_state=state,
            controls_accepted=_ACCEPT_STOP | _ACCEPT_SHUTDOWN if state == _RUNNING else 0,
            win32_exit_code=_SERVICE_SPECIFIC if exit_status else _NO_ERROR,
            service_specific_exit_code=exit_status,
            check_point=0,
            wait_hint=_WAIT_HINT_MILLISECONDS if state == _STOP_PENDING else 0,
        )
        self._api.SetServiceStatus(ctypes.c_void_p(self._handle), ctypes.byref(status))


def advapi32() -> Any:
    """The manager's library."""
    library = ctypes.WinDLL("advapi32", use_last_error=True)  # type: ignore[attr-defined]
    library.RegisterServiceCtrlHandlerExW.restype = ctypes.c_void_p
    return library
