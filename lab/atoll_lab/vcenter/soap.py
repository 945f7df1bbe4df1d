"""Requests off the wire and replies onto it, with pyVmomi's own serialiser.

The wire format is the vSphere Web Services SDK's document/literal SOAP 1.1:
`<Body><Method xmlns="urn:vim25"><_this type="T">moid</_this>…`.
"""

from dataclasses import dataclass, field
from typing import Any
from xml.parsers.expat import ExpatError, ParserCreate

from pyVmomi import SoapAdapter, VmomiSupport, vmodl

NAMESPACE = "urn:vim25"
_BODY_CHILD_DEPTH = 3
_ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<soapenv:Envelope xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/"'
    ' xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
    ' xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
    "<soapenv:Body>{}</soapenv:Body></soapenv:Envelope>"
)
FETCH = "Fetch"
"""The undocumented method behind pyVmomi's attribute access: one property of one object."""


@dataclass(frozen=True)
class Request:
    """A method called on a managed object. `result_type` is None for a method without result."""

    this: Any
    method: str
    arguments: dict[str, Any]
    result_type: Any


@dataclass
class _Body:
    """What the parser has seen so far."""

    this: Any = None
    method: Any = None
    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)


class _RequestParser:
    """Walks the envelope and lends the expat parser to pyVmomi for each argument."""

    def __init__(self, version: str) -> None:
        self.body = _Body()
        self._version = version
        self._namespaces: dict[str | None, list[str]] = {}
        self._depth = 0
        self._pending: tuple[str, Any, Any] | None = None
        self._parser = ParserCreate(namespace_separator=SoapAdapter.NS_SEP)
        self._parser.ordered_attributes = False
        self._parser.buffer_text = True
        self._parser.StartNamespaceDeclHandler = self._start_namespace
        self._parser.EndNamespaceDeclHandler = self._end_namespace
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text

    def parse(self, data: bytes) -> _Body:
        self._parser.Parse(data, True)
        return self.body

    def _start_namespace(self, prefix: str | None, uri: str) -> None:
        self._namespaces.setdefault(prefix, []).append(uri)

    def _end_namespace(self, prefix: str | None) -> None:
        self._namespaces[prefix].pop()

    def _text(self, data: str) -> None:
        """Between arguments there is only white space."""

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._collect()
        name = tag.rpartition(SoapAdapter.NS_SEP)[2]
        if self._depth + 1 <= _BODY_CHILD_DEPTH:
            self._depth += 1
            if self._depth == _BODY_CHILD_DEPTH:
                self.body.name = name
                self.body.method = _method(name)
            return
        declared = self._argument_type(name)
        item = declared.Item if _is_array(declared) else declared
        deserializer = SoapAdapter.SoapDeserializer(None, self._version)
        deserializer.Deserialize(self._parser, item, False, self._namespaces)
        self._pending = (name, declared, deserializer)
        # From here to the argument's end tag the parser's handlers are pyVmomi's.
        deserializer.StartElementHandler(tag, attributes)

    def _end(self, tag: str) -> None:
        self._collect()
        self._depth -= 1

    def _argument_type(self, name: str) -> Any:
        if name == "_this":
            return VmomiSupport.ManagedObject
        for parameter in self.body.method.params:
            if parameter.name == name:
                return parameter.type
        raise vmodl.fault.InvalidRequest(msg=f"{self.body.name} has no parameter {name}")

    def _collect(self) -> None:
        """Take the finished argument from pyVmomi, which reports no end."""
        if self._pending is None:
            return
        name, declared, deserializer = self._pending
        self._pending = None
        value = deserializer.GetResult()
        if name == "_this":
            self.body.this = value
        elif _is_array(declared):
            self.body.arguments.setdefault(name, declared()).append(value)
        else:
            self.body.arguments[name] = value


def parse_request(data: bytes, version: str) -> Request:
    """Read a request; vmodl InvalidRequest or MethodNotFound when it is not one."""
    try:
        body = _RequestParser(version).parse(data)
    except (ExpatError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise vmodl.fault.InvalidRequest(msg=f"Cannot read the request: {error!r}") from error
    if body.this is None or body.method is None:
        raise vmodl.fault.InvalidRequest(msg="The request calls no method on no object")
    result = getattr(body.method, "result", None)
    return Request(
        this=body.this,
        method=body.name,
        arguments=body.arguments,
        result_type=None if result is type(None) else result,
    )


def reply(method: str, value: Any, result_type: Any, version: str) -> bytes:
    """The envelope of a method's answer."""
    inner = ""
    nothing = value is None or (isinstance(value, list) and not value)
    if not nothing and result_type is not None:
        if _is_array(result_type) and not isinstance(value, VmomiSupport.Array):
            value = result_type(value)
        inner = SoapAdapter.SerializeToStr(
            value, _slot("returnval", result_type, version), version, SoapAdapter.SOAP_NSMAP
        )
    return _ENVELOPE.format(
        f'<{method}Response xmlns="{NAMESPACE}">{inner}</{method}Response>'
    ).encode()


def fault_reply(fault: Any, version: str) -> bytes:
    """The envelope of a method fault; sent with HTTP status 500."""
    slot = _slot(f"{type(fault)._wsdlName}Fault", type(fault), version)
    detail = SoapAdapter.SerializeFaultDetail(fault, slot, version, SoapAdapter.SOAP_NSMAP)
    message = SoapAdapter.XmlEscape(fault.msg or "")
    return _ENVELOPE.format(
        "<soapenv:Fault><faultcode>ServerFaultCode</faultcode>"
        f"<faultstring>{message}</faultstring><detail>{detail}</detail></soapenv:Fault>"
    ).encode()


def fingerprint(value: Any, version: str) -> str:
    """The value as it would be sent: two values are the same when these are."""
    return str(
        SoapAdapter.SerializeToStr(
            value, _slot("val", object, version), version, SoapAdapter.SOAP_NSMAP
        )
    )


def requested_version(soap_action: str) -> str:
    """pyVmomi's name of the API version a SOAPAction (`urn:vim25/8.0.3.0`) asks for."""
    identifier = soap_action.strip('"').rpartition("/")[2]
    for version in VmomiSupport.GetServiceVersions("vim25"):
        if VmomiSupport.versionIdMap[version] == identifier:
            return str(version)
    raise vmodl.fault.InvalidRequest(msg=f"Unknown API version {soap_action}")


def _method(name: str) -> Any:
    if name == FETCH:
        return VmomiSupport.Object(
            name=FETCH,
            wsdlName=FETCH,
            params=[VmomiSupport.Object(name="prop", type=str)],
            result=object,
        )
    try:
        return VmomiSupport.GetWsdlMethod(NAMESPACE, name).info
    except KeyError as error:
        raise vmodl.fault.MethodNotFound(msg=f"No method {name}", method=name) from error


def _slot(name: str, kind: Any, version: str) -> Any:
    return VmomiSupport.Object(name=name, type=kind, flags=0, version=version)


def _is_array(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, list)
