"""Puts the bundled model into wheels; an editable install finds it in the checkout."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BundledModel(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "standard":
            build_data["force_include"]["weights/stilllife"] = "sage/weights/stilllife"
