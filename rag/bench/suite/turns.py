"""One request at a time: engines take turns at every request, in random order, so that all see the same machine.

What an engine caches lives through the pass, so the stream goes from cold to warm.
"""

import random
from time import process_time

from rag.bench.peers.errors import PeerError
from rag.bench.suite.asked import OVERRUN, Asked
from rag.bench.suite.lineup import awake
from rag.bench.suite.player import Player
from rag.bench.suite.records import AnswerRecord
from rag.bench.suite.requests import BenchRequest
from rag.bench.suite.units import Course, Unit

__all__ = ["ask_alone", "run_turns"]

LONGEST_WAIT = 0.5  # seconds between looks at the clock


def run_turns(course: Course) -> None:
    """Measure a pass: one unit with every engine in it."""
    with course.unit() as unit:
        players = _prepare(course, unit)
        order = random.Random(f"{course.experiment.workload.seed} {course.name}")
        requests = course.stream.requests
        for done, request in enumerate(requests):
            course.tell(done / len(requests), f"{done} of {len(requests)} requests")
            for player in order.sample(players, len(players)):
                _take_turn(course, unit, player, request)
                if player.contestant.name not in course.lineup:
                    players.remove(player)
        for player in players:
            try:
                unit.records.append(player.window(unit.name))
            except PeerError as error:
                unit.records.append(course.lineup.drop(player.contestant, unit.name, error))
        unit.records += course.scores(unit.name, [one for one in unit.records if isinstance(one, AnswerRecord)])


def ask_alone(course: Course, player: Player, asked: Asked) -> None:
    """Send one request to an engine that is awake and hear all of its answer.

    Raises:
        PeerError: the engine is gone, or was silent for longer than the pass has patience.
    """
    contestant = player.contestant
    asked.arrival = course.clock()
    contestant.submit(asked.request)
    asked.sent = heard = course.clock()
    while not asked.ended:
        events = contestant.events(LONGEST_WAIT)
        for event in events:
            if event.number == asked.request.number:
                asked.hear(event)
        if events:
            heard = course.clock()
        elif course.clock() - heard > course.patience:
            raise PeerError(f"{contestant.name} was silent for {course.patience:.0f} seconds")
        if asked.overrun:
            contestant.cancel()
            asked.give_up(OVERRUN)


def _prepare(course: Course, unit: Unit) -> list[Player]:
    players = []
    for contestant in course.lineup.of(course.experiment.contestants):
        course.tell(0.0, f"preparing {contestant.name}")
        try:
            players.append(Player.prepare(contestant, course.stream))
        except PeerError as error:
            unit.records.append(course.lineup.drop(contestant, unit.name, error))
    return players


def _take_turn(course: Course, unit: Unit, player: Player, request: BenchRequest) -> None:
    cpu, asked = process_time(), Asked(request, arrival=course.clock())
    try:
        with awake(player.contestant):
            ask_alone(course, player, asked)
    except PeerError as error:
        asked.give_up(str(error))
        unit.records.append(course.lineup.drop(player.contestant, unit.name, error))
    player.seconds += course.clock() - asked.arrival
    player.generator_cpu += process_time() - cpu
    warmup = request.number < course.experiment.warmup
    unit.records.append(asked.record(unit.name, player.contestant.name, unit.began, warmup=warmup))
