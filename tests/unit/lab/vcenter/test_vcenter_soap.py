"""Requests as pyVmomi writes them, replies as it reads them."""

import io

import pytest
from pyVmomi import SoapStubAdapter, VmomiSupport, vim, vmodl
from pyVmomi.SoapAdapter import SoapResponseDeserializer

from atoll_lab.vcenter import soap

VERSION = "vim.version.v8_0_3_0"
Q = vmodl.query.PropertyCollector


def written(this, method, *arguments):
    info = VmomiSupport.GetWsdlMethod(soap.NAMESPACE, method).info
    return SoapStubAdapter(version=VERSION).SerializeRequest(this, info, arguments)


def read(data, kind):
    stub = SoapStubAdapter(version=VERSION)
    return SoapResponseDeserializer(stub).Deserialize(io.BytesIO(data), kind)


def test_a_request_is_read_back_with_nested_and_repeated_arguments():
    view = vim.view.ContainerView("v1")
    walk = Q.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
    specs = [
        Q.FilterSpec(
            objectSet=[Q.ObjectSpec(obj=view, skip=True, selectSet=[walk])],
            propSet=[Q.PropertySpec(type=vim.VirtualMachine, pathSet=["name", "runtime.host"])],
        ),
        Q.FilterSpec(
            objectSet=[Q.ObjectSpec(obj=view)],
            propSet=[Q.PropertySpec(type=vim.view.View)],
        ),
    ]

    request = soap.parse_request(
        written(Q("pc"), "RetrievePropertiesEx", specs, Q.RetrieveOptions(maxObjects=7)), VERSION
    )

    assert (request.this._moId, request.method) == ("pc", "RetrievePropertiesEx")
    first, second = request.arguments["specSet"]
    assert first.objectSet[0].selectSet[0].path == "view"
    assert first.propSet[0].type is vim.VirtualMachine
    assert list(first.propSet[0].pathSet) == ["name", "runtime.host"]
    assert second.objectSet[0].obj._moId == "v1"
    assert request.arguments["options"].maxObjects == 7


def test_types_enumerations_and_markup_survive():
    request = soap.parse_request(
        written(
            vim.VirtualMachine("vm-1"), "CreateSnapshot_Task", "a<b> & 'c'", "ünï", False, True
        ),
        VERSION,
    )

    assert request.arguments == {
        "name": "a<b> & 'c'",
        "description": "ünï",
        "memory": False,
        "quiesce": True,
    }


def test_a_method_without_arguments_is_read():
    request = soap.parse_request(written(vim.host.StorageSystem("s"), "RescanAllHba"), VERSION)

    assert (request.this._moId, request.arguments, request.result_type) == ("s", {}, None)


def test_an_unknown_method_is_method_not_found():
    data = written(vim.host.StorageSystem("s"), "RescanAllHba").replace(b"RescanAllHba", b"Explode")

    with pytest.raises(vmodl.fault.MethodNotFound):
        soap.parse_request(data, VERSION)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-40],
        lambda data: b"<html><body><p>hello</p></body></html>",
        lambda data: data.replace(b"hbaDevice", b"nonsense"),
        lambda data: data.replace(b' type="HostStorageSystem"', b""),
        lambda data: data.replace(b' type="HostStorageSystem"', b' type="Teapot"'),
    ],
)
def test_what_is_no_request_is_invalid(spoil):
    data = written(vim.host.StorageSystem("s"), "RescanHba", "vmhba64")

    with pytest.raises((vmodl.fault.InvalidRequest, vmodl.fault.MethodNotFound)):
        soap.parse_request(spoil(data), VERSION)


def test_a_reply_is_read_by_the_client():
    found = read(soap.reply("CreateView", vim.Task("task-9"), vim.Task, VERSION), vim.Task)

    assert (type(found), found._moId) == (vim.Task, "task-9")


def test_a_list_reply_is_read_by_the_client():
    kind = VmomiSupport.GetWsdlMethod(soap.NAMESPACE, "FindAllByUuid").info.result
    data = soap.reply("FindAllByUuid", [vim.VirtualMachine("vm-1")], kind, VERSION)

    assert [each._moId for each in read(data, kind)] == ["vm-1"]


def test_a_fault_is_read_by_the_client_with_its_message_and_fields():
    fault = vim.fault.InvalidPowerState(
        msg="<off>", requestedState="poweredOff", existingState="poweredOff"
    )

    found = read(soap.fault_reply(fault, VERSION), None)

    assert isinstance(found, vim.fault.InvalidPowerState)
    assert (found.msg, found.existingState) == ("<off>", "poweredOff")


def test_the_version_asked_for_is_understood():
    assert soap.requested_version('"urn:vim25/6.7.3"') == "vim.version.version15" or (
        VmomiSupport.versionIdMap[soap.requested_version('"urn:vim25/6.7.3"')] == "6.7.3"
    )
    with pytest.raises(vmodl.fault.InvalidRequest):
        soap.requested_version("urn:vim25/99.9")
