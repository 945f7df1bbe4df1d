"""The ServiceInstance: where every client begins."""

from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim, vmodl

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes


class ServiceInstance(Managed):
    """Says what this server is and names its singletons."""

    kind = vim.ServiceInstance

    @exposes("content")
    def content(self) -> Any:
        """The ServiceContent."""
        return vim.ServiceInstanceContent(
            rootFolder=self.site.layout.root.ref,
            propertyCollector=vmodl.query.PropertyCollector("propertyCollector"),
            viewManager=vim.view.ViewManager("ViewManager"),
            sessionManager=vim.SessionManager("SessionManager"),
            searchIndex=vim.SearchIndex("SearchIndex"),
            authorizationManager=vim.AuthorizationManager("AuthorizationManager"),
            about=vim.AboutInfo(
                name="VMware vCenter Server",
                fullName="Atoll lab vCenter simulator 8.0.3",
                vendor="Atoll",
                version="8.0.3",
                build="1",
                osType="linux-x64",
                productLineId="vpx",
                apiType="VirtualCenter",
                apiVersion="8.0.3.0",
                instanceUuid="6f0b1f0e-0d4e-4b53-9c0c-a70110000001",
            ),
        )

    @exposes("serverClock")
    def server_clock(self) -> datetime:
        """Now."""
        return datetime.now(UTC)

    @answers("RetrieveServiceContent")
    def retrieve_content(self, call: Call) -> Any:
        """The ServiceContent."""
        return self.content()

    @answers("CurrentTime")
    def current_time(self, call: Call) -> datetime:
        """Now."""
        return datetime.now(UTC)
