"""What a run chose by measurement, why, and the setting that fixes it: a table from the rows of its metrics."""

from collections.abc import Callable
from typing import Any, NamedTuple

from spikedream.reports.page import html_table, number

Row = dict[str, Any]


class MeasuredChoice(NamedTuple):
    metric: str
    title: str
    shown: Callable[[float], str]
    why: Callable[[Row], str]
    setting: str


def _prior(row: Row) -> str:
    errors = {name.removeprefix("prior/error_"): row[name] for name in row if name.startswith("prior/error_")}
    told = ", ".join(f"{error:.3g} with {strength}" for strength, error in errors.items())
    return f"the strongest whose squared error on held-out steps was near the least: {told}"


def _judged(row: Row) -> str:
    """Candidates by the mean return of their dreams, best first."""
    found = {name.removeprefix("selection/return_"): row[name] for name in row if name.startswith("selection/return_")}
    best_first = sorted(found, key=lambda rate: -found[rate])
    told = ", ".join(f"{found[rate]:.4g} of rate {rate}" for rate in best_first)
    return f"mean return in dreams that the newest model's members dream alone: {told}"


CHOICES = (
    MeasuredChoice("scale/action_repeat", "Steps for which an action is held", number,
           lambda row: f"an entry of the observation goes round in about {row['scale/cycle']:.0f} of the environment's steps",
           "--action-repeat"),
    MeasuredChoice("scale/reward", "Rewards are divided by", number,
           lambda row: "the largest seen, or four root mean squares of all where that is less", "--replay.scale largest"),
    MeasuredChoice("scale/horizon", "Steps that count ahead", lambda steps: f"{steps:.0f} (gamma {1 - 1 / steps:.3f})",
           lambda row: "one and a half cycles of the observation where every step has a reward, 100 where rewards are rare; at most"
                       " half an episode where none ends before its limit",
           "--agent.gamma"),
    MeasuredChoice("scale/reward_weight", "Weight of the reward's error in the model", number,
           lambda row: "in units of the rewards' own variance it counts as much as the error of all of the observation; less, the"
                       " more of that variance comes with endings",
           "--world-model.reward-weight 1"),
    MeasuredChoice("scale/rare_changes", "Entries whose changes are rare", lambda share: f"{share:.0%}",
           lambda row: "few of them set the root mean square: errors count in units of the mean magnitude, and far ones by their"
                       " logarithm", "--world-model.robust False"),
    MeasuredChoice("scale/impacts", "Entries with impacts", lambda share: f"{share:.0%}",
           lambda row: "their changes are rare, and the fit before missed some by ten times as much as where errors begin to count"
                       " by their logarithm" if row["scale/impacts"] else "the fit before missed no rare change by far",
           "--world-model.impacts False"),
    MeasuredChoice("prior/curvature", "Penalty on a curved model", number, _prior, "--world-model.search None"),
    MeasuredChoice("prior/additive_ending", "Ending adds up entries", lambda yes: "yes" if yes else "no",
           lambda row: f"cross-entropy on held-out steps {row['prior/loss_additive']:.3g}, free {row['prior/loss_free']:.3g}",
           "--world-model.search None"),
    MeasuredChoice("pessimism", "Reward lost per unit of uncertainty", number,
           lambda row: "the root of its mean squared error on held-out steps; at least 1 where episodes end"
                       " and steps that end none pay as a rule",
           "--agent.uncertainty-penalty"),
    MeasuredChoice("dream_limit", "Uncertainty up to which dreams go on", number,
           lambda row: "agent.error_limit times the root of its mean squared error on held-out steps; of the last dreams' steps"
                       f" {row['dream_trusted']:.0%} came before it was exceeded", "--agent.error-limit None"),
    MeasuredChoice("beta", "Weight of curiosity", number,
           lambda row: "no reward has told one state from another" if row["blind"] else "rewards or endings tell states apart",
           "--bonus None"),
    MeasuredChoice("actor_rests", "Updates that were a new critic's alone", lambda share: f"{share:.0%}",
           lambda row: "the scale of rewards, or the largest bonus, was no longer what it had learned"
                       if row["actor_rests"] else "the scale of rewards and the largest bonus were about what it had learned",
           "--agent.critic-first 0"),
    MeasuredChoice("selection/rate", "What acts greedily",
           lambda rate: "the actor after its last update" if rate == 1 else f"its average over about {1 / rate:.0f} updates",
           _judged, "--agent.selection None"),
)  # fmt: skip


def chosen_html(rows: list[Row]) -> str:
    """Of the last row that tells each choice; empty where nothing was chosen."""
    found = []
    for choice in CHOICES:
        told = [row for row in rows if choice.metric in row and (choice.metric != "beta" or "blind" in row)]
        if told:
            row = told[-1]
            shown = choice.shown(row[choice.metric])
            found.append((choice.title, shown, choice.why(row), f"<code>{choice.setting}</code>"))
    return html_table(("what", "chosen", "why", "fixed by"), found, "prose") if found else ""
