"""Puts the bundled models into wheels; an editable install finds it in the checkout."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BundledModel(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "standard":
            for name in ("stilllife", "stilllife-turbo"):
                build_data["force_include"][f"weights/{name}"] = f"sage/weights/{name}"
