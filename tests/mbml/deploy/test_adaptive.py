"""The policy as users load it: what it takes, that it acts as the agent that was evaluated, and that it survives."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from mbml import AdaptivePolicy, PolicyError
from mbml.policy import ContextAgent
from tests.mbml.deploy.small import EVERY, TASKS, describe, make_policy, transitions, user_units, write
from tests.mbml.toys import LAYOUT

PATH = "acting mixture"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of every kind of policy in the network's units, and one of each in a user's."""
    root = tmp_path_factory.mktemp("policies")
    found = {kind: write(root / kind.replace(" ", "-"), kind) for kind in EVERY}
    found["user"] = write(root / "user", "acting mixture", **user_units())
    return found


def columns(*streams):
    """Transitions of several entities side by side: s, a, r, s', terminated, each `[n, ...]`, step by step."""
    return [tuple(np.stack(part) for part in zip(*step, strict=True)) for step in zip(*streams, strict=True)]


def weights(policy):
    """What a policy believes of the training tasks, which it must weigh."""
    tasks = policy.belief.tasks
    assert tasks is not None
    return tasks


def test_loading_and_acting_brings_in_no_simulator_no_ray_and_no_pandas(folders):
    program = f"""
import sys
from mbml import AdaptivePolicy
policy = AdaptivePolicy.load({str(folders["generative mixture"])!r})
policy.observe([0, 0, 0], policy.act([0, 0, 0]), 1, [0, 0, 1], False)
policy.belief
unwanted = "ray", "mujoco", "pandas", "gymnasium", "jinja2", "torch._dynamo", "mbml.envs"
print([name for name in unwanted if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["acting mixture", "acting mixture arbitrated", "acting product", "pearl"])
def test_it_acts_as_the_agent_that_is_evaluated(folders, kind):
    """Lock-step with episodes of one length: bit for bit, where z is not drawn."""
    policy, entities = AdaptivePolicy.load(folders[kind], entities=2, deterministic=True), 2
    agent = ContextAgent(make_policy(kind), torch.Generator(), entities, deterministic=True)
    for step, (s, a, r, following, _) in enumerate(columns(transitions(24, 1), transitions(24, 2))):
        seen, acted, paid, moved = (torch.tensor(part, dtype=torch.float32) for part in (s, a, r, following))
        assert policy.act(s).tolist() == agent.act(seen).tolist()
        over = step % 6 == 5
        policy.observe(s, a, r, following, truncated=over)
        agent.observe(seen, acted, moved, paid)
        agent.belief()  # which sums up after every step, as the policy does
        if over:
            agent.begin_episode()
        assert policy.belief.mean.tolist() == agent.belief().mean.tolist()


@pytest.mark.parametrize("kind", EVERY)
def test_one_entity_is_a_fleet_of_one_and_a_fleet_is_many_of_one(folders, kind):
    streams = [transitions(14, seed) for seed in (1, 2, 3)]
    fleet = AdaptivePolicy.load(folders[kind], entities=3, deterministic=True)
    alone = [AdaptivePolicy.load(folders[kind], deterministic=True) for _ in streams]
    for s, a, r, following, ended in columns(*streams):
        actions = fleet.act(s)
        assert actions.dtype == np.float32
        assert actions.shape == (3, 2)
        for i, one in enumerate(alone):
            np.testing.assert_allclose(actions[i], one.act(s[i]), atol=1e-5)
            one.observe(s[i], a[i], r[i], following[i], ended[i])
        fleet.observe(s, a, r, following, ended)
    for i, one in enumerate(alone):
        np.testing.assert_allclose(fleet.belief.mean[i], one.belief.mean, rtol=1e-4, atol=1e-5)


def test_entities_may_act_and_observe_one_by_one(folders):
    streams = [transitions(9, seed) for seed in (1, 2)]
    together, apart = (AdaptivePolicy.load(folders[PATH], entities=2) for _ in range(2))
    for s, a, r, following, ended in columns(*streams):
        actions = together.act(s)
        together.observe(s, a, r, following, ended)
        for i in (1, 0):
            np.testing.assert_allclose(apart.act(s[i : i + 1], [i])[0], actions[i], atol=1e-6)
            apart.observe(s[i : i + 1], a[i : i + 1], r[i : i + 1], following[i : i + 1], ended[i : i + 1], which=[i])
    np.testing.assert_allclose(weights(apart), weights(together), atol=1e-5)


def test_entities_come_go_and_are_forgotten(folders):
    policy = AdaptivePolicy.load(folders[PATH], entities=0)
    assert policy.act(np.zeros((0, 3))).shape == (0, 2)
    assert policy.add(3) == [0, 1, 2]
    for s, a, r, following, _ in columns(*(transitions(5, seed) for seed in (1, 2, 3))):
        policy.act(s)
        policy.observe(s, a, r, following)
    known = weights(policy)
    policy.reset([1])
    assert weights(policy)[1].tolist() == [0.0] * TASKS
    assert policy.belief.untold.tolist() == [0.0, 1.0, 0.0]
    assert weights(policy)[[0, 2]].tolist() == known[[0, 2]].tolist()
    moved = policy.state([2])
    policy.remove([0, 2])
    assert policy.entities == 1
    assert policy.add(state=moved) == [1]
    assert weights(policy)[1].tolist() == known[2].tolist()


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("form", ["json", "bytes"])
def test_a_fleet_that_was_away_acts_on_with_the_same_bits(folders, kind, form):
    stayed = AdaptivePolicy.load(folders[kind], entities=2, seed=5)
    stream = columns(transitions(12, 1), transitions(12, 2))
    for s, a, r, following, ended in stream[:6]:
        stayed.act(s)
        stayed.observe(s, a, r, following, ended)
    left = AdaptivePolicy.load(folders[kind], entities=7)
    left.restore(json.loads(json.dumps(stayed.state())) if form == "json" else stayed.state_bytes())
    for s, a, r, following, ended in stream[6:]:
        assert stayed.act(s).tolist() == left.act(s).tolist()
        for policy in (stayed, left):
            policy.observe(s, a, r, following, ended)
    assert stayed.state() == left.state()


def altered(state, **entities):
    """A state that says something else of its entities."""
    return state | {"entities": state["entities"] | entities}


def test_a_state_from_which_no_belief_follows_is_refused(folders):
    """A negative precision would end in actions that are no numbers."""
    policy = AdaptivePolicy.load(folders["acting product"])
    good = policy.state()
    sums = [[-1.0] * len(good["entities"]["statistics"][0])]
    with pytest.raises(PolicyError, match="no belief follows from its statistics"):
        policy.restore(altered(good, statistics=sums))
    assert policy.state() == good


def test_whole_numbers_in_the_place_of_floats_are_no_damage(folders):
    """Other languages write 0.0 as 0."""
    policy = AdaptivePolicy.load(folders[PATH])
    good = policy.state()
    policy.restore(altered(good, earned=[[[0, 0], [0, 0]]]))
    assert policy.state() == good


def test_a_state_that_is_damaged_or_of_another_policy_is_refused(folders):
    policy = AdaptivePolicy.load(folders[PATH], entities=2)
    good = policy.state()
    bad = {
        "This is no state": [{}, {"format": "x"}],
        "the state of another policy": [good | {"policy": "0" * 64}],
        "no state of a policy, for it cannot be read as JSON; give what state": [b"\xff", "junk", "[" * 100_000],
        "no state of a policy but a ": ["[]", b"3", 3],
        "it has no draws": [{name: value for name, value in good.items() if name != "draws"}],
        "the state's draws is too large": [good | {"draws": int("9" * 400)}, good | {"draws": 2**63}],
        "the state's seed is -1": [good | {"seed": -1}],
        "told should have 1 of true and false for each": [altered(good, told=told) for told in (7, [7, 7], [0.0, 1.0])],
        "steps should have 1 whole numbers for each": [altered(good, steps=[0.5, 1]), altered(good, steps="ab")],
        "steps and numbers of episodes should be 0, 1, 2": [
            altered(good, steps=[-1, 0]),
            altered(good, episode=[[0.0, -2.0], [0.0, 0.0]]),
            altered(good, earned=[[[0.0, 0.5], [0.0, 0.0]]] * 2),
        ],
        "damaged": [
            good | {"entities": {**good["entities"], "z": [[0.0]]}},
            good | {"entities": {**good["entities"], "z": [[float("nan")] * 3] * 2}},
            good | {"entities": {**good["entities"], "steps": [0]}},
            good | {"entities": {}},
            good | {"entities": 3},
        ],
    }
    for words, states in bad.items():
        for state in states:
            with pytest.raises(PolicyError) as refused:
                policy.restore(state)
            assert words in str(refused.value)
            with pytest.raises(PolicyError):
                policy.add(state=state)
    with pytest.raises(PolicyError, match="has 2 entities, and this policy acts for one"):
        AdaptivePolicy.load(folders[PATH]).restore(good)
    assert policy.state() == good


@pytest.mark.parametrize("observation", [[0, 1, 2], (0.0, 1.0, 2.0), np.arange(3), np.arange(3, dtype=np.float64)])
def test_lists_and_every_type_of_real_number_are_taken(folders, observation):
    policy = AdaptivePolicy.load(folders[PATH])
    expected = AdaptivePolicy.load(folders[PATH]).act(np.arange(3, dtype=np.float32))
    assert policy.act(observation).tolist() == expected.tolist()
    policy.observe(observation, [0, 0], 1, observation, np.bool_(False))
    policy.observe(observation, [0, 0], np.float64(1), observation, False, False)


@pytest.mark.parametrize(
    ("call", "words"),
    {
        "size": (lambda p: p.act([0, 1]), r"observation has shape \(2,\); it should be \(3,\)\.$"),
        "axis": (lambda p: p.act([[0, 1, 2]]), r"observation has shape \(1, 3\); it should be \(3,\)\.$"),
        "text": (lambda p: p.act(["a", "b", "c"]), r"observation is of type <U1; it should be real numbers of shape"),
        "nothing": (lambda p: p.act(None), r"observation is of type object"),
        "ragged": (lambda p: p.act([[0], [1, 2]]), r"observation is no array of numbers"),
        "nan": (lambda p: p.act([0, np.nan, 2]), r"observation has a value at \[1\] that is not finite"),
        "reward": (
            lambda p: p.observe([0] * 3, [0] * 2, [1.0], [0] * 3),
            r"reward has shape \(1,\); it should be \(\)",
        ),
        "action": (lambda p: p.observe([0] * 3, 0, 1.0, [0] * 3), r"action has shape \(\); it should be \(2,\)"),
        "ragged flag": (
            lambda p: p.observe([0] * 3, [0] * 2, 1.0, [0] * 3, [[1], [1, 2]]),
            "terminated is no array of numbers .* one flag",
        ),
        "flag": (lambda p: p.observe([0] * 3, [0] * 2, 1.0, [0] * 3, 0.5), r"terminated is float64 .* one flag"),
        "large": (lambda p: p.observe([0] * 3, [0] * 2, 1e300, [0] * 3), r"reward has a value .* too large"),
        "huge": (lambda p: p.observe([1e38] * 3, [0] * 2, 1, [-1e38] * 3), r"what was inferred .* not finite"),
        "which": (lambda p: p.act([0] * 3, [0]), r"which\(\) needs a fleet"),
        "add": (lambda p: p.add(), r"add\(\) needs a fleet"),
    }.values(),
)
def test_what_it_cannot_take_is_refused_in_a_sentence_and_leaves_it_as_it_was(folders, call, words):
    policy = AdaptivePolicy.load(folders["acting product"])
    before = policy.state()["entities"]
    with pytest.raises(PolicyError, match=words):
        call(policy)
    assert policy.state()["entities"] == before


def test_a_fleet_names_its_shapes_and_positions(folders):
    policy = AdaptivePolicy.load(folders[PATH], entities=2)
    with pytest.raises(
        PolicyError, match=r"observation has shape \(3,\); it should be \(2, 3\), a row for each entity"
    ):
        policy.act([0, 1, 2])
    for which in ([2], [-1], [0, 0], [0.5], 1, [[0], [0, 1]]):
        with pytest.raises(PolicyError, match=r"it should be a list of positions from 0 to 1, each once"):
            policy.reset(which)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"entities": -1}, "entities is -1"),
        ({"fallback": "blind"}, 'should be None or "untold"'),
        ({"threshold": 2.0}, "threshold is 2.0"),
        ({"threshold": None}, "threshold is None"),
        ({"entities": 10**15}, "There is no memory for 1000000000000000 entities; take fewer"),  # of any machine
        ({"entities": 10**5000}, "entities is too large"),
        ({"renewed_every": 1.5}, "renewed_every is 1.5"),
        ({"fallback": "untold"}, "was written without task models"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folders, settings, words):
    with pytest.raises(PolicyError, match=words):
        AdaptivePolicy.load(folders[PATH], **settings)


@pytest.mark.parametrize("folder", [None, 3, b"policy", "a\0b"])
def test_what_is_no_path_is_refused(folder):
    with pytest.raises(PolicyError, match=r"should be the path of a policy's folder|is no policy folder"):
        AdaptivePolicy.load(folder)


def test_too_many_new_entities_leave_the_others_as_they_were(folders):
    policy = AdaptivePolicy.load(folders[PATH], entities=2)
    before = policy.state()
    for number in (10**15, 10**20):
        with pytest.raises(PolicyError, match=r"no memory for|number is too large"):
            policy.add(number)
    assert policy.state() == before


def test_it_works_in_the_user_s_units(folders):
    """The same entity in the user's units and in the network's: the same beliefs, and actions mapped back."""
    units = user_units()
    mine, plain = AdaptivePolicy.load(folders["user"]), AdaptivePolicy.load(folders[PATH])
    for here, there in zip(transitions(12, 3, units), transitions(12, 3), strict=True):
        action = mine.act(here[0])
        np.testing.assert_allclose(action, 5.0 + 10.0 * plain.act(there[0]), atol=1e-4)
        assert (action >= -5).all()
        assert (action <= 15).all()
        mine.observe(*here)
        plain.observe(*there)
    np.testing.assert_allclose(weights(mine), weights(plain), atol=1e-4)


def test_z_is_formed_anew_as_often_as_the_setting_says(folders):
    """Nothing else changes what a deterministic policy does at one place."""
    for every, wanted in ((None, 4), (0, None), (1, 1), (3, 3)):
        policy, changes, last = AdaptivePolicy.load(folders[PATH], renewed_every=every), [], None
        for step, (s, a, r, following, _) in enumerate(transitions(12, 4)):
            action = policy.act([0.1, 0.2, 0.3]).tolist()
            changes += [step] if last is not None and action != last else []
            last = action
            policy.observe(s, a, r, following)
        assert changes == ([] if wanted is None else list(range(wanted, 12, wanted)))


def test_acting_is_drawn_unless_it_is_to_be_deterministic(folders):
    for kind in ("generative mixture", "generative product"):
        drawn = AdaptivePolicy.load(folders[kind], seed=1), AdaptivePolicy.load(folders[kind], seed=2)
        fixed = [AdaptivePolicy.load(folders[kind], seed=seed, deterministic=True) for seed in (1, 2)]
        actions = [[policy.act([0, 0, 1]).tolist() for _ in range(3)] for policy in (*drawn, *fixed)]
        assert actions[0] != actions[1]
        assert actions[0][0] != actions[0][1]
        assert actions[2] == actions[3]
        assert actions[2][0] == actions[2][1]


def test_the_belief_weighs_the_tasks_that_the_description_names(folders, tmp_path):
    policy = AdaptivePolicy.load(folders[PATH])
    assert (weights(policy).tolist(), policy.belief.untold) == ([0.0] * TASKS, 1.0)
    for s, a, r, following, _ in transitions(5, 1):
        policy.observe(s, a, r, following)
    tasks = weights(policy)
    assert tasks.shape == (len(policy.description.tasks),)
    assert policy.belief.untold == 0
    assert tasks.sum() == pytest.approx(1.0)
    others = AdaptivePolicy.load(write(tmp_path / "others", PATH, untold=False))  # a mixture of embeddings of its own
    for other in (AdaptivePolicy.load(folders["pearl"]), others):
        assert (other.belief.tasks, other.belief.untold) == (None, None)
    assert describe(make_policy(PATH)).inference.encoder == "mixture"
    assert policy.description.observation.size == LAYOUT.observation_size


def test_an_arbitrated_policy_compares_episodes_by_the_user_s_rewards(tmp_path):
    """First untold, then told, then as has earned more; an offset of the rewards must not decide it."""
    units = user_units()
    policy = AdaptivePolicy.load(write(tmp_path / "policy", "acting mixture arbitrated", **units))
    total, told = 0.0, []
    for step, (s, a, r, following, _) in enumerate(transitions(15, 2, units)):
        policy.act(s)
        told.append(policy.state()["entities"]["told"][0])
        if step < 5:
            total += r
        policy.observe(s, a, r, following, truncated=step in (4, 6))
    assert told[:5] == [False] * 5
    assert told[5:7] == [True] * 2
    untold, other = policy.state()["entities"]["earned"][0]
    assert untold == pytest.approx([total, 1], rel=1e-5)
    assert told[7] == (other[0] >= untold[0])
