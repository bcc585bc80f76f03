"""What a full stop after a token may mean: the tables that the chunker decides by and the normaliser expands by."""

from __future__ import annotations

from enum import Enum, auto


class Dot(Enum):
    """What stands before a full stop that white space follows."""

    PLAIN = auto()
    """A word: the stop ends a sentence."""
    NUMBER = auto()
    """Digits: a stop, a list marker or a German ordinal."""
    INITIAL = auto()
    """One capital letter: a name's initial, or the end (`plan B.`)."""
    DOTTED = auto()
    """Letters with stops between them (`U.S`, `Ph.D`): ends only before a word that opens sentences."""
    TITLE = auto()
    """A name follows (`Dr`)."""
    NEVER = auto()
    """Never ends a sentence (`e.g`)."""
    NUMBERED = auto()
    """An abbreviation only before a number (`No`, `p`)."""
    MAYBE = auto()
    """Ends a sentence when what follows looks like the beginning of one (`etc`, `p.m`)."""


def words(text: str) -> frozenset[str]:
    """A table written as text."""
    return frozenset(text.split())


TITLES = words("""
    mr mrs ms mx dr prof rev fr hon gen col maj capt cpt cmdr lt sgt sen rep gov pres supt st ste mt ft messrs
    herr hr sra srta dra dña mme mlle mgr sig dott ing sta
""")
NEVER = words("""
    e.g i.e eg ie vs cf viz approx resp incl excl esp dept univ assn ca n.b z.b d.h u.a v.a z.t s.o s.u o.ä p.ej
    bzw evtl ggf inkl zzgl vgl sog geb ud uds vd vds av avda núm
""")
NUMBERED = words("""
    no nos nr nrs p pp vol vols ch chap sec sect fig figs art par tel op ext apt ver approx
""")
MAYBE = words("""
    etc inc ltd co corp llc jr sr al ave blvd rd hwy bros usw a.m p.m sq lb lbs oz hrs mins mph
""")
# Words when written small or at a sentence's end; abbreviations of months and days when written with a capital.
DATES = words("""
    Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Mon Tue Tues Wed Thu Thur Thurs Fri Sat Sun
""")

# A word that opens a sentence and is hardly ever part of a name: it decides where an abbreviation leaves it open.
STARTERS = words("""
    A After All Also Although An And Another Any Are As At Be Because Before Both But By Can Could Did Do Does Each
    Either Even Every Finally First For From Good Great Had Has Have He Hello Her Here Hers Hi His How However I If In Instead Is
    It Its Just Last Later Let Many May Maybe Meanwhile More Most My Neither Next No Nobody None Nor Not Nothing Now Of
    Oh Ok Okay On Once One Only Or Other Our Perhaps Please Shall She Should Since So Some Sometimes Soon Still Such Sure Than
    Thank Thanks That The Their Them Then There Therefore These They This Those Though Through Thus To Today Tomorrow Two
    Under Until Unless Up Was We Well Were What When Where Whereas Whether Which While Who Whose Why Will With Without Would
    Yes Yesterday Yet You Your
    Der Die Das Ein Eine Und Aber Er Sie Es Wir Ihr Ich Le La Les Un Une Des Il Elle Nous Vous Et Mais El Los Las Una
    Pero Yo Ella Nosotros Lo Gli
""")
# What goes on after `5 p.m.` and `3.` although it has a capital.
CALENDAR = words("""
    January February March April June July August September October November December Monday Tuesday Wednesday Thursday
    Friday Saturday Sunday EST EDT CST CDT MST MDT PST PDT ET CT MT PT UTC GMT CET CEST Eastern Central Pacific Mountain
    Januar Februar März Mai Juni Juli Oktober Dezember Jahrhundert
""")


def classify(token: str) -> Dot:
    """What ``token``, the run of letters, digits and stops before a full stop, makes of it."""
    if not token:
        return Dot.PLAIN
    if token[-1].isdigit():
        return Dot.NUMBER
    if len(token) == 1:
        if token.isupper():
            return Dot.INITIAL
        return Dot.NUMBERED if token in NUMBERED else Dot.PLAIN
    low = token.lower()
    if low in MAYBE:
        return Dot.MAYBE
    if low in NEVER:
        return Dot.NEVER
    if low in TITLES:
        return Dot.TITLE
    if low in NUMBERED:
        return Dot.NUMBERED
    if token in DATES:
        return Dot.MAYBE
    parts = token.split(".")
    if len(parts) > 1 and (low in ("ph.d", "m.sc", "b.sc") or all(len(part) == 1 and part.isalpha() for part in parts)):
        return Dot.DOTTED
    return Dot.PLAIN
