"""Words that can make a caption false: concrete nouns in groups, colors, numbers, relations.

The nouns of a group are mutually exclusive names of an object: none is a kind of another, so swapping two makes a
caption false. Near synonyms (car and van, sofa and couch) and nouns of which one is a kind of the other (dog and
poodle) form one `Noun` and are never swapped. The words are frequent in Flickr8k, Flickr30K and COCO captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain


@dataclass(frozen=True)
class Noun:
    """An object and its names, each as (singular, plural); swaps insert the first one.

    near: other words that suggest that this object is in the image. If a caption of the image has one of them, this
    noun is not used as a false one.
    """

    names: tuple[tuple[str, str], ...]
    near: tuple[str, ...] = ()

    @cached_property
    def words(self) -> frozenset[str]:
        """All words that suggest this object: its names and those in `near`."""
        return frozenset((*self.near, *chain(*self.names)))


@dataclass(frozen=True)
class Group:
    """Mutually exclusive nouns. salient: descriptions rarely omit such an object."""

    nouns: tuple[Noun, ...]
    salient: bool = False


_PLURALS = {"man": "men", "woman": "women", "gentleman": "gentlemen", "sheep": "sheep", "calf": "calves",
            "person": "people", "child": "children", "goose": "geese", "woods": "woods"}


def _plural(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith(("s", "ch", "sh", "x")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeiou" else word + "s"


def _noun(names: str, near: str = "") -> Noun:
    return Noun(tuple((name, _plural(name)) for name in names.split()), tuple(near.split()))


def _group(*nouns: Noun, salient: bool = False) -> Group:
    return Group(nouns, salient)


_FEMALE = "she her hers herself female females girl girls bride mother daughter sister wife businesswoman cowgirl"
_MALE = "he his him himself male males boy boys groom father son brother husband businessman cowboy dad"
_SEVERAL = ("people person couple group crowd team family band others audience spectators pedestrians players friends "
            "kids children adults passengers someone")

GROUPS: dict[str, Group] = {
    "adults": _group(
        _noun("man guy gentleman", f"{_MALE} {_SEVERAL}"), _noun("woman lady", f"{_FEMALE} {_SEVERAL}")),
    "young": _group(
        _noun("boy", f"{_MALE} man men guy toddler baby {_SEVERAL}"),
        _noun("girl", f"{_FEMALE} woman women lady toddler baby {_SEVERAL}")),
    "animals": _group(
        _noun("dog puppy poodle greyhound retriever shepherd terrier collie labrador bulldog dalmatian hound beagle "
              "husky pup", "lab rottweiler doberman dobermans corgi corgis sheltie dane pitbull pitbulls racedog mutt "
              "dachshund chihuahua pug boxer spaniel setter pointer schnauzer kennel canine weimaraner huskies"),
        _noun("cat kitten"), _noun("horse pony donkey foal mule", "rodeo horseback"),
        _noun("cow bull calf ox", "cattle rodeo herd"), _noun("sheep lamb goat", "herd flock"),
        _noun("elephant"), _noun("giraffe"), _noun("zebra"), _noun("bear", "teddy"), _noun("monkey"), _noun("rabbit"),
        _noun("pig", "swine piglet piglets"),
        _noun("bird duck goose pigeon seagull parrot eagle chicken", "flock feathers hawk crane swan heron crow owl"),
        salient=True),
    "vehicles": _group(
        _noun("car van jeep taxi cab sedan suv truck pickup", "vehicle vehicles traffic racing lorry"),
        _noun("bus", "vehicle vehicles transit"),
        _noun("train locomotive trolley tram", "subway station railroad tracks vehicle rail"),
        _noun("boat canoe kayak ship sailboat", "raft vessel sailing sail rowing rowers dock harbor rafting rafters "
              "kayaking kayaker kayakers canoeing paddling paddle paddles"),
        _noun("airplane plane", "aircraft airport runway jet jets"), _noun("helicopter", "aircraft"), salient=True),
    "mounts": _group(
        _noun("bicycle bike motorcycle motorbike scooter moped", "biker bikers cyclist cyclists bicyclist bicyclists "
              "motorcyclist motorcyclists bmx biking cycling rider riders motocross cycle wheelchair stroller"),
        _noun("skateboard", "skateboarder skateboarders skateboarding skater skaters skate board"),
        _noun("surfboard", "surfer surfers surfing surf surfs board"),
        _noun("snowboard", "snowboarder snowboarders snowboarding board"),
        _noun("sled sleigh toboggan sledge", "sledding tube tobaggan"), salient=True),
    "toys": _group(
        _noun("ball", "football soccer basketball baseball tennis volleyball rugby golf softball game pitch"),
        _noun("frisbee", "disc disk"),
        _noun("stick", "branch log wood hockey pole cane"), _noun("kite"), _noun("balloon"), _noun("umbrella parasol"),
        salient=True),
    "instruments": _group(
        _noun("guitar", "instrument instruments band music musician musicians guitarist"),
        _noun("drum", "instrument instruments band music musician musicians drummer"),
        _noun("violin fiddle cello", "instrument instruments band music musician musicians"),
        _noun("trumpet trombone", "instrument instruments band music musician musicians horn"),
        _noun("piano", "keyboard instrument instruments band music musician musicians"),
        _noun("accordion", "instrument instruments band music musician musicians"), salient=True),
    "food": _group(
        _noun("pizza", "food meal"), _noun("sandwich burger hamburger hotdog", "food meal hot"),
        _noun("cake cupcake", "food dessert birthday"), _noun("banana", "fruit fruits food"),
        _noun("apple", "fruit fruits food"), _noun("donut doughnut", "food dessert pastry pastries"),
        _noun("carrot", "vegetables vegetable food veggies"), _noun("cookie", "food dessert"), salient=True),
    "furniture": _group(
        _noun("bench", "seat seated bleachers"), _noun("couch sofa", "furniture"), _noun("bed", "bedroom hospital"),
        _noun("table", "dining meal desk counter restaurant cafe"), salient=True),
    "things": _group(
        _noun("laptop computer", "desk office"), _noun("phone cellphone telephone", "cell talking call"),
        _noun("book magazine newspaper", "reading reads read paper"),
        _noun("bottle", "can cans beverage beer drinking drink drinks wine"),
        _noun("clock"), _noun("toilet", "bathroom restroom"), _noun("suitcase", "luggage bag bags"), salient=True),
    "upper clothes": _group(
        _noun("shirt t-shirt tshirt jersey sweater sweatshirt hoodie jacket coat vest blouse suit tuxedo"),
        _noun("dress gown skirt kilt")),
    "places to be on": _group(
        _noun("beach shore", "sand sandy ocean sea waves surf water coast"),
        _noun("street road highway sidewalk", "city traffic cars car urban path pavement pavement intersection lane"),
        _noun("roof rooftop", "building"), _noun("mountain hill cliff mountainside", "rock rocks rocky climbing slope"),
        _noun("bridge")),
    "places to be in": _group(
        _noun("forest jungle woods", "tree trees wooded wood leaves"), _noun("desert", "sand sandy dune dunes dirt"),
        _noun("kitchen", "cooking cook stove oven food indoors inside"),
        _noun("pool", "water swimming swim swims splashing"),
        _noun("field meadow pasture", "grass grassy park lawn yard green"),
        _noun("river lake ocean pond sea creek stream", "water waves swimming swim"),
        _noun("bathroom restroom", "toilet sink shower indoors inside"), _noun("classroom", "school students student"),
    )}
# nouns that are verbs too, unless the word before shows that they are nouns
ALSO_VERBS = frozenset("""
    stick sticks sled sleds bike bikes skateboard skateboards snowboard snowboards boat boats kayak kayaks canoe canoes
    raft rafts train trains book books phone phones drum drums balloon balloons bear bears dog dogs duck ducks ship
    ships""".split())
# sports, after "play"; without a plural
SPORTS: tuple[Noun, ...] = (_noun("soccer football rugby"), _noun("tennis badminton"), _noun("basketball"),
                            _noun("baseball softball cricket"), _noun("volleyball"), _noun("golf"), _noun("hockey"))
# ground or cover, after "the" or a preposition; without a plural
GROUNDS: tuple[Noun, ...] = (
    _noun("snow ice", "snowy ski skiing snowboard snowboarding winter sled slope icy"),
    _noun("grass lawn", "grassy field park yard meadow green golf"),
    _noun("sand dirt mud dust", "sandy beach desert dune dunes muddy dirty shore"),
    _noun("water", "ocean lake pool river sea wave waves pond swimming swims surfing surfer boat splashing splashes "
          "stream creek beach wet surf fountain puddle kayak canoe sprinkler"))

COLORS: dict[str, tuple[str, ...]] = {  # color to insert -> its other names, and colors that are confused with it
    "red": ("red", "maroon", "scarlet", "orange", "pink", "burgundy"),
    "blue": ("blue", "navy", "turquoise", "teal", "aqua", "purple", "denim", "jeans", "black", "dark"),
    "green": ("green", "turquoise", "teal", "lime", "grass", "grassy", "camouflage", "camo", "olive", "yellow"),
    "yellow": ("yellow", "gold", "golden", "blond", "blonde", "tan", "beige", "orange", "brown"),
    "orange": ("orange", "red", "yellow", "peach", "brown", "tan"),
    "pink": ("pink", "red", "purple", "magenta", "peach"),
    "purple": ("purple", "violet", "lavender", "pink", "blue", "maroon", "magenta"),
    "black": ("black", "dark", "gray", "grey", "brown", "navy", "blue", "purple"),
    "white": ("white", "light", "gray", "grey", "cream", "beige", "silver", "snow", "snowy"),
    "brown": ("brown", "tan", "beige", "dark", "black", "golden", "red", "orange")}
COLOR_WORDS = frozenset({*COLORS, "gray", "grey", "tan", "beige", "maroon"})
MANY_COLORS = frozenset("""
    colorful colored multicolored multi striped plaid checkered colors brightly various different""".split())
# not a color that the object could exchange for another: "white water", "red wine", a black man, "orange juice"
NOT_AFTER_COLOR = frozenset("""
    water wine tea house sox belt juice light lights photo photograph picture image man men woman women boy boys girl
    girls people person guy guys lady ladies child children kid kids male males female females teenager couple hair
    haired headed skinned one team bear beans peppers onions skin area colored hill field eyes lab labrador and in color
    colors guard day""".split())

NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLURALS_WITHOUT_S = frozenset("""
    men women people children sheep geese mice teeth feet fish deer cattle gentlemen firemen policemen elderly
""".split())
NOT_AFTER_NUMBER = frozenset("""
    of year years wheel wheels wheeler wheelers wheeled story way hundred thousand piece person feet inches others times
    seater different legs hands arms eyes ears paws miles""".split())

# phrase -> phrase that makes it false. No movement: a photo does not show whether somebody walks into or out of a house
RELATIONS: dict[str, str] = {
    "in front of": "behind", "behind": "in front of", "above": "below", "below": "above", "underneath": "on top of",
    "beneath": "on top of", "on top of": "underneath", "under": "on top of", "inside": "outside", "outside": "inside",
    "next to": "far away from", "beside": "far away from", "close to": "far away from", "near": "far away from",
    "on": "under", "over": "under"}
DETERMINERS = frozenset("a an the his her its their some another".split())
# these phrases denote a place only before one of the determiners
NEED_DETERMINER = frozenset(RELATIONS) - {"next to", "beside", "near", "close to"}
# words before which "on", "over" and the like do not denote a place
NOT_PLACES = frozenset("""
    phone cellphone telephone cell day afternoon morning night evening side left right tv television way vacation
    display other air fire background camera knees hind move back belly stomach head face shoulders shoulder feet foot
    toes edge hands hand legs leg run end arm neck cloudy sunny clear overcast rainy bright cold warm hot ground course
    trip race game its distance lookout sun computer guitar drums piano instrument instruments front corner top bottom
    world tour break team shirt jacket hat cap tire rope swing wall screen""".split())
VERBS_OF_ROLES = frozenset("""
    chases chasing follows following rides riding carries carrying holds holding throws throwing kicks kicking pushes
    pushing pulls pulling catches catching bites biting hits hitting leads leading drives driving wears wearing eats
    eating feeds feeding climbs climbing jumps jumping leaps leaping sits sitting stands standing lays laying lies lying
    leans leaning runs running rests resting perches perched carries chews chewing paints painting washes washing cuts
    cutting walks walking""".split())
PREPOSITIONS_OF_ROLES = ("on top of", "in front of", "after", "behind", "under", "above", "over", "onto", "on", "into",
                         "up", "down", "off")
# subjects and objects of these verbs, in addition to the nouns of the groups
NOUNS_OF_ROLES = frozenset("""
    person child toddler baby player skateboarder surfer snowboarder skier biker cyclist bicyclist climber rider cowboy
    hiker swimmer runner worker kid teenager hat cap helmet fence wall rock log tree rope rail railing ramp slide swing
    pole hoop tire toy hurdle bar obstacle wave ledge ladder chair stool tunnel flag sign camera microphone baseball
    football basketball racket bat bone bag backpack stroller cart wagon bucket hose net trampoline statue fountain tent
    vest scarf mask wig costume uniform helmet necklace bikini swimsuit snow grass dock pier platform stage porch step
    staircase box basket tray plate cup glass knife fork spoon pan pot bowl sink stove oven refrigerator desk towel
    blanket pillow mat rug carpet tower wire""".split())
# words that may follow a noun outside a compound ("car" but not "car race")
FORMS_OF_VERBS = frozenset("""
    runs run jumps jump sits sit stands stand walks walk plays play looks look holds hold rides ride leaps leap lies lay
    lays lie rests rest smiles smile swims swim climbs climb throws throw catches catch carries carry wears wear watches
    chases chase pulls pull pushes push eats eat sleeps sleep takes take tries try poses pose performs perform slides
    slide splashes dances dance laughs reads talks talk sings kicks kick swings flies fly bites digs gets goes hangs has
    have does do leans leads makes paddles races races rolls shakes shows skates surfs slides stares swims waits waves
    were was is are and or with""".split())
# words before a noun that can be omitted
ADJECTIVES = frozenset("""
    small large big little young old older elderly tall short long tiny huge giant wide narrow high steep shallow deep
    white black red blue green yellow orange pink purple brown gray grey tan beige dark bright golden blond blonde light
    colorful striped plaid spotted wet dry snowy sandy grassy rocky muddy dirty busy crowded empty wooden metal plastic
    brick stone concrete leather fluffy furry hairy bald bearded shirtless barefoot happy smiling asian african american
    indoor outdoor nearby beautiful pretty cute nice bare wooded""".split())
# words that say nothing at the end of a shortened text
LOOSE_ENDS = frozenset("""
    a an the his her its their some another of in on at by for with from to into onto off over under above below between
    through across along against around behind beside near toward towards next inside outside out up down while as and
    or but is are was were has have that which who being be very wearing holding carrying using making taking doing
    having dressed covered""".split())
# words that start a last phrase, which can be removed
LAST_PHRASES = tuple("""
    on in at near by with through across along over under behind beside into against around towards down outside inside
    for from""".split())
