# caught by: test_the_limit_lets_so_many_in_and_no_more, test_without_a_limit_it_is_50_a_minute, test_a_refusal_says_when_to_come_back, test_a_refused_request_costs_the_model_nothing, test_each_address_has_a_count_of_its_own, test_forwarded_addresses_are_not_believed, test_a_body_that_is_422_counts, test_a_body_that_is_not_json_counts, test_a_request_that_the_model_fails_counts, test_a_stream_in_progress_counts, test_after_the_window_it_lets_in_again, test_two_apps_in_memory_do_not_share_a_count, test_two_apps_on_one_redis_share_a_count | says: the status is 200, although no answer follows
import math
import time

from chat_stream import create_app as create_stream_app
from fastapi import Response
from limits import parse
from limits.storage import storage_from_string
from limits.strategies import MovingWindowRateLimiter


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    app = create_stream_app(handler)
    item = parse(limit)
    window = MovingWindowRateLimiter(storage_from_string(storage_uri))

    @app.middleware("http")
    async def count(request, call_next):
        client = request.client.host
        if not window.hit(item, client):
            left_s = math.ceil(window.get_window_stats(item, client).reset_time - time.time())
            wait_s = min(max(1, left_s), item.get_expiry())
            event = 'event: error\ndata: {"message": "too many requests"}\n\n'
            headers = {"Retry-After": str(wait_s)}
            return Response(event, headers=headers, media_type="text/event-stream")
        return await call_next(request)

    return app
