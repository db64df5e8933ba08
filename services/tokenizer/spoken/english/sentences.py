"""Where a sentence begins: tells a full stop that ends one from that of an abbreviation."""

from __future__ import annotations

import re

# Words that begin a sentence and hardly ever follow a name or initials within one, capital first.
_STARTERS = (
    "The|He|She|It|They|We|I|You|In|On|At|But|And|Or|So|Then|This|That|These|Those|There|Here|A|An|His|Her|Its|Their|Our|My|Your|If|"
    "When|While|As|For|From|To|With|By|After|Before|Since|Because|Although|However|What|Who|Where|Why|How|Is|Are|Was|Were|Do|Does|Did|"
    "Can|Could|Will|Would|Should|Please|Thanks|Yes|No|Now|Today|Tomorrow|Yesterday|Let|See|Call|Not|All|Some|Many|Most|One|Two|Both|Each"
)
_START = re.compile(rf"\s+[\"'(]?(?:{_STARTERS})\b")


def begins_sentence(after: str) -> bool:
    """Whether what follows a full stop is the end of the text or a new sentence."""
    return not after.strip() or _START.match(after) is not None
