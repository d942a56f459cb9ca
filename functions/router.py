"""`Look up routes`: decides for every recipient and groups what is delivered together."""

import os
from typing import Any

from ses_mail import clients, observe, outcomes, route_table, routing
from ses_mail.payloads import RouterPayload, RouterResult

_METRICS = {routing.STORE: "Stored", routing.DROP: "Dropped", routing.PARK: "InvalidRules"}
_VERDICTS = {outcomes.VIRUS: "Viruses", outcomes.LOOP: "Loops"}
_ENDS = {routing.STORE: outcomes.STORED, routing.DROP: outcomes.DROPPED}


@observe.task
def handler(event: RouterPayload, _context: Any) -> RouterResult:
    """The deliveries of all recipients; a malformed rule parks only those that it matched."""
    decisions = route_table.route(
        clients.dynamodb(),
        os.environ["ROUTING_TABLE"],
        event["recipients"],
        event["verdict"],
        event.get("to", ""),
    )
    for decision in decisions:
        observe.routing_decision(decision)
        if decision.action in _METRICS:
            observe.count(_METRICS[decision.action])
        if decision.reason == outcomes.NO_RULE:
            observe.count("Unrouted")
    if event["verdict"] != outcomes.SAFE:
        observe.count(_VERDICTS[event["verdict"]])
    deliveries = [delivery.as_state() for delivery in routing.group(decisions)]
    for delivery in deliveries:
        if delivery["action"] in _ENDS:
            result = _ENDS[delivery["action"]]
            observe.action_result(delivery, result, "", delivery["reason"])
    return {"deliveries": deliveries}
