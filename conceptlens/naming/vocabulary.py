"""Lists of words to name concepts with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

LISTS = ("default", "imagenet")

# Written for this project, under its licence: what can be seen in a picture, in common words.
WORDS = """
red orange yellow green blue purple violet pink brown black white grey golden silver turquoise
beige crimson maroon navy cyan magenta lime olive teal ivory cream rust copper bronze colourful
pale dark bright shiny dull glossy matte transparent translucent opaque reflective glowing faded
striped dotted spotted checked plaid zigzag chequered speckled patterned plain mottled marbled
floral brindled tabby banded ringed woven knitted braided quilted pleated wrinkled crumpled smooth
rough bumpy furry hairy fluffy feathered scaly spiky thorny prickly grooved ribbed cracked peeling
porous bubbly foamy wet dry muddy dusty sandy rocky icy snowy grassy mossy leafy woody smoky foggy
cloudy blurred sharp round square triangular rectangular oval circular spiral curved straight
crooked pointed flat hollow thick thin long short tall wide narrow tiny huge curly wavy coiled
folded twisted tangled layered stacked scattered crowded empty symmetrical circle disc ring dot
triangle rectangle diamond hexagon cross star heart arrow crescent spiral-shape line stripe grid
mesh lattice net web arch dome cone cube cylinder sphere pyramid wood bark metal steel iron brass
gold glass plastic rubber leather fur wool cotton silk denim velvet lace canvas fabric cloth paper
cardboard brick stone concrete marble granite tile ceramic porcelain clay sand gravel soil mud
grass moss hay straw wicker bamboo rope wire chain foam wax ice snow water fire smoke steam dust
ash skin bone shell feather horn scale eye eyes nose mouth ear ears tongue teeth whisker whiskers
beard moustache hair mane face head neck shoulder arm hand finger leg knee foot paw claw hoof tail
wing beak snout muzzle trunk tusk antler fin flipper gill belly back chest stripe-coat pupil
eyelash eyebrow lip chin cheek forehead wheel tyre spoke axle door window windscreen mirror
headlight bumper bonnet roof wall floor ceiling stair step railing fence gate pillar column balcony
chimney tower spire bell clock handle knob lever button key keyboard screen lens dial pedal saddle
seat cushion armrest strap buckle zip collar sleeve pocket hem sole heel lace-knot blade edge tip
stem leaf leaves petal root branch trunk-of-tree seed fruit peel rim spout lid cork label text
letter number sign logo cat kitten dog puppy wolf fox bear lion tiger leopard cheetah jaguar lynx
hyena horse pony zebra donkey cow bull ox buffalo sheep lamb goat pig boar deer elk moose antelope
gazelle camel llama giraffe elephant rhinoceros hippopotamus kangaroo koala panda raccoon skunk
badger otter beaver squirrel chipmunk mouse rat hamster rabbit hare hedgehog porcupine mole bat
sloth armadillo monkey ape gorilla chimpanzee orangutan baboon lemur seal walrus whale dolphin
shark ray fish goldfish salmon eel trout seahorse octopus squid jellyfish starfish crab lobster
shrimp snail slug clam coral sponge anemone worm snake python cobra viper lizard gecko iguana
chameleon crocodile alligator turtle tortoise frog toad newt salamander bird eagle hawk falcon owl
vulture crow raven magpie jay robin sparrow finch swallow pigeon dove parrot macaw cockatoo
hummingbird woodpecker kingfisher toucan peacock pheasant quail chicken hen cock turkey duck goose
swan pelican flamingo heron stork crane gull penguin ostrich insect ant bee wasp fly mosquito
beetle ladybird butterfly moth caterpillar dragonfly grasshopper cricket cockroach mantis spider
tarantula scorpion centipede tick tree oak pine palm willow bush hedge forest jungle flower rose
daisy tulip sunflower orchid lily poppy dandelion cactus fern ivy mushroom fungus vine reed weed
lichen apple pear orange-fruit lemon banana pineapple strawberry raspberry cherry grape peach plum
melon watermelon fig pomegranate coconut tomato potato carrot onion garlic cabbage broccoli
cauliflower lettuce cucumber pepper aubergine artichoke pumpkin squash corn pea bean nut acorn
bread loaf bagel pretzel cake biscuit pie pizza sandwich burger hotdog sausage meat steak bacon egg
cheese butter milk ice-cream chocolate sweets honey soup stew salad pasta rice noodles sushi sauce
coffee espresso tea beer wine juice cocktail plate bowl cup mug saucer glass-of-drink bottle jug
jar can tin pot pan kettle teapot spoon fork knife ladle spatula whisk grater oven stove toaster
microwave fridge dishwasher sink tap bath toilet shower soap towel brush comb mirror-frame
toothbrush razor table desk chair stool bench sofa bed cradle pillow blanket carpet rug curtain
lamp candle lantern torch chandelier shelf cupboard wardrobe drawer chest-of-drawers box basket
bucket barrel bag sack backpack suitcase purse wallet envelope book newspaper magazine map pen
pencil paintbrush scissors ruler glue stapler telephone computer laptop mouse-device printer
television radio loudspeaker microphone camera projector remote-control watch hourglass sundial
compass telescope microscope binoculars thermometer scales syringe stethoscope pill bandage mask
helmet hat cap crown wig scarf tie bow glasses sunglasses necklace bracelet earring shirt jersey
jumper coat jacket suit dress gown skirt trousers jeans shorts swimsuit bikini apron cloak robe
sock stocking shoe boot sandal slipper glove mitten belt umbrella fan hammer saw drill screwdriver
spanner axe shovel rake hoe plough nail screw hook lock padlock anvil wheelbarrow lawnmower broom
mop ladder hose pump sword shield bow-and-arrow gun rifle cannon missile guitar violin cello piano
organ harp flute trumpet trombone saxophone drum accordion maraca gong ball football basketball
baseball tennis-ball golf-ball racket bat-for-ball puck ski snowboard skate surfboard sled kite
balloon doll teddy puzzle dice domino swing slide carousel dumbbell barbell parachute trophy medal
coin banknote flag banner parasol tent hammock car taxi limousine van bus lorry ambulance
fire-engine tractor tank bicycle tricycle motorcycle scooter train locomotive tram carriage cart
wagon boat canoe ship ferry yacht sail raft submarine aircraft-carrier aeroplane airliner
helicopter airship rocket space-shuttle anchor propeller engine house cottage cabin hut barn castle
palace church mosque temple monastery skyscraper factory school library museum shop market
restaurant cinema theatre stadium bridge viaduct dam dock lighthouse windmill greenhouse prison
garage petrol-station station platform street road pavement crossing traffic-light street-sign
parking-meter letterbox fountain statue monument obelisk totem-pole grave wall-of-stones roof-tiles
scaffolding crane-machine sky cloud sun moon stars rainbow lightning storm rain fog sunset horizon
mountain volcano hill cliff cave valley canyon desert dune beach shore island sea wave lake pond
river stream waterfall geyser reef field meadow farm garden park orchard vineyard path person man
woman child baby crowd bride diver player rider soldier nurse chef athlete dancer kitchen bathroom
bedroom office classroom hospital laboratory workshop stage playground shadow reflection silhouette
background border frame corner stain hole crack scratch tear dent watermark caption stamp barcode
"""


def vocabulary(name: str = "default") -> list[str]:
    """A list of words, all different.

    Parameters
    ----------
    name : {"default", "imagenet"}
        "default": some 900 common words for what can be seen: colours, patterns, textures, shapes,
        materials, parts of animals and things, animals, plants, food, things, places. Written for
        this project, Apache-2.0. "imagenet": the names of ImageNet's classes as torchvision
        (BSD-3-Clause) carries them.
    """
    if name == "default":
        return list(dict.fromkeys(word.replace("-", " ") for word in WORDS.split()))
    if name == "imagenet":
        from torchvision.models import ResNet18_Weights

        return list(dict.fromkeys(ResNet18_Weights.DEFAULT.meta["categories"]))
    raise ValueError(f"there is no vocabulary {name!r}: there are {LISTS}, and any list of yours")


def check_words(words: Sequence[str]) -> list[str]:
    """Return the words as a list; raise unless they are different texts, none of them empty."""
    if isinstance(words, str):
        raise TypeError(f"the words must be a list, got the text {words!r}: vocabulary() has lists")
    try:
        words = list(words)
    except TypeError:
        raise TypeError(f"the words must be a list, got {words!r}") from None
    if wrong := [w for w in words if not isinstance(w, str) or not w.strip()]:
        raise ValueError(f"the words must be texts that are not empty, got {wrong[:3]}")
    if twice := [w for w, count in Counter(words).items() if count > 1]:
        raise ValueError(f"the words must be different; these are given more than once: {twice}")
    if not words:
        raise ValueError("there are no words to name concepts with: the list is empty")
    return words
