# caught by: test_sends_one_post_to_chat, test_a_slash_or_a_path_in_base_url, test_returns_the_result, test_talks_to_the_chat_endpoint, test_works_in_a_running_event_loop, test_a_4xx_or_5xx_is_a_chat_error, test_the_error_says_what_the_server_said, test_no_server_is_a_chat_error, test_a_broken_connection_is_a_chat_error, test_other_200s_are_chat_errors, test_a_silent_server_is_given_up, test_a_slow_server_is_waited_for | says: ask is an async def: it should be an ordinary function
import httpx


class ChatError(Exception):
    pass


async def ask(base_url, text, *, timeout_s=60.0):
    async with httpx.AsyncClient() as client:
        response = await client.post(
            base_url.rstrip("/") + "/chat", json={"text": text}, timeout=timeout_s
        )
    if response.is_error:
        raise ChatError(f"{response.status_code}: {response.text}")
    return response.json()["result"]
