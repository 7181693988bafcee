# caught by: test_no_server_is_a_chat_error, test_a_4xx_or_5xx_is_a_chat_error, test_the_error_says_what_the_server_said, test_a_broken_connection_is_a_chat_error, test_other_200s_are_chat_errors, test_nothing_is_sent_twice, test_a_silent_server_is_given_up | says: remove sys.exit()
import sys

import httpx


class ChatError(Exception):
    pass


def ask(base_url, text, *, timeout_s=60.0):
    try:
        response = httpx.post(
            base_url.rstrip("/") + "/chat", json={"text": text}, timeout=timeout_s
        )
        response.raise_for_status()
        result = response.json()["result"]
        if type(result) is not str:
            raise ChatError(result)
        return result
    except Exception as error:
        sys.exit(f"Could not ask {base_url}: {error}")
