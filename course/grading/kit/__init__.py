"""What a test holds in its hand. The machine that runs it is `course.grading`.

tool              lives in                what it is                                         used by
http              runner                  requests, waited for in the background             1.3, 3.7
sse               runner                  server-sent events, read as they arrive            2.2, 2.3, 3.7
websocket         runner                  a WebSocket client                                 2.4
script            room, runner (`Steps`)  held, allowed, failing steps of a scripted part    scripted_*
scripted_handler  room, runner (`Model`)  2.1's handler by script                            2.2, 2.3, 2.4
readers           room, runner (`Talk`)   readers of a held model, who come, wait and leave  2.1, 3.6
reader_cases      runner                  the rules about reading that they share            2.1, 3.6, 4.3
scripted_chat     room, runner (`Chat`)   3.6's chat model by script                         3.7, 4.3
scripted_slots    room                    4.1's slot model, `take` and `give` by script      4.1
scripted_server   runner                  a server by script, for clients                    1.4, 2.6
clock             runner, room            a clock that the test moves                        2.3, lockstep
rest              runner                  whether the room's threads all sleep               1.3, lockstep
lockstep          runner                  a scripted server in step with the answer's clock  2.6
asgi              room                    one ASGI exchange, each receive and send by hand   3.4, 4.2
logs              room, runner            the lines of a log folder                          3.4
processes         room, runner            a program, its children, free ports                2.5
tokenizers        room                    other templates; a tokenizer that merges newlines  1.2, 1.5, 2.1, 3.6
settings          both                    what checkpoints set, and what is then not said    1.2, 2.1
cases             both                    texts that must survive, wrong bodies, sleeps      1.3, 2.2, 2.4, 3.7

What one exercise uses stays beside its test; what two use is here. A tool imports
`course.grading.mistakes` and other tools, nothing else of the grader.
"""
