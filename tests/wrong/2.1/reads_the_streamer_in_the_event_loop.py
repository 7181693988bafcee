# caught by: test_the_event_loop_never_waits_for_the_model, test_a_cancelled_reader_stops_the_model, test_a_reader_who_leaves_the_queue_stops_the_model, test_leaving_does_not_wait_for_the_model, test_one_leaver_stops_only_its_own, test_answers_at_once_do_not_mix, test_64_streams_at_once_all_finish | says: a blocking call inside async def: the event loop stood still while the model was held
from threading import Event, Thread

from transformers import StoppingCriteriaList, TextIteratorStreamer


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop, errors = Event(), []

        def run():
            try:
                inputs = self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    add_generation_prompt=True,
                    return_dict=True,
                    return_tensors="pt",
                )
                self.model.generate(
                    **inputs,
                    streamer=streamer,
                    max_new_tokens=max_new_tokens,
                    do_sample=temperature > 0,
                    temperature=temperature or None,
                    stopping_criteria=StoppingCriteriaList([lambda *_, **__: stop.is_set()]),
                )
            except Exception as error:
                errors.append(error)
                streamer.end()

        Thread(target=run, daemon=True).start()
        pieces = []
        try:
            for piece in streamer:
                piece = piece.rstrip("\ufffd")
                pieces.append(piece)
                if stream and piece:
                    yield piece
        finally:
            stop.set()
        if errors:
            raise errors[0]
        if not stream:
            yield "".join(pieces)
