"""HTTP over the scheduler: the app, its endpoints and shapes, keys, names, uploads, metrics, and the page.

Alone imports the web library.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.serving.http.access import Access, read_keys
    from softprompt.serving.http.app import make_app
    from softprompt.serving.http.listening import Listener
    from softprompt.serving.http.registry import Registry, Shared, by_hand, clean_up
    from softprompt.serving.http.state import Server
    from softprompt.serving.http.wire import Limits

__getattr__, __all__ = face(__name__)
