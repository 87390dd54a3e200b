"""Settings and logging of the service. Imports neither `chat_service` nor `workers`."""

from config.load import SettingsError, load_settings
from config.settings import Settings

__all__ = ["Settings", "SettingsError", "load_settings"]
