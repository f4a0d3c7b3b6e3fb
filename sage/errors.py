"""What a user can get wrong.  Each carries one clear line that says what to do; the command line exits with 2."""


class SageError(Exception):
    """Base of every error that is the input's fault, not the program's."""


class ModelError(SageError):
    """A model that is not there, not whole, not of a known kind, or refused."""


class PictureError(SageError):
    """A picture that cannot be read or written, or is refused."""


class PromptError(SageError):
    """A prompt too long for the model, or a phrase that is not in its prompt."""


class SettingsError(SageError):
    """A setting out of its range, of the wrong type, or that contradicts another."""


class NumericsError(SageError):
    """A stage that gave non-finite numbers even in float32."""
