# Asks a server so many questions at once, each on a connection of its own, and keeps what comes. Python and not Node: a connection costs it little more than what
# the kernel takes, and a client of Node two to three times as much, which on two cores the server has to wait for.
# In, as JSON: {"host", "port", "questions": [text, ...], "limitSeconds"}. Out, as JSON: {"cpuMicros", "answers": [[milliseconds, text] or null, ...]}, in their order;
# milliseconds from before the connection until its end; null: it broke, or came to no end in time.
import gc
import json
import select
import socket
import sys
import time

asked = json.load(sys.stdin)
place = (asked["host"], asked["port"])
questions = [text.encode() for text in asked["questions"]]
answers = [None] * len(questions)
begun = [0.0] * len(questions)
pieces = [[] for _ in questions]
sockets = {}
poll = select.epoll(len(questions))
gc.disable()
clock = time.perf_counter
cpu = time.process_time()

for index, question in enumerate(questions):
    begun[index] = clock()
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(place)
    sockets[one.fileno()] = (one, index)
    try:
        one.send(question)
        poll.register(one.fileno(), select.EPOLLIN)
    except OSError:  # It is not connected yet: the place where connections wait is full.
        poll.register(one.fileno(), select.EPOLLOUT)

until = clock() + asked["limitSeconds"]
while sockets and clock() < until:
    for number, event in poll.poll(1, 512):
        one, index = sockets[number]
        try:
            if event & select.EPOLLOUT:
                one.send(questions[index])
                poll.modify(number, select.EPOLLIN)
                continue
            piece = one.recv(65536)
            if piece:
                pieces[index].append(piece)
                continue
            answers[index] = ((clock() - begun[index]) * 1000, b"".join(pieces[index]).decode("latin-1"))
        except BlockingIOError:
            continue
        except OSError:
            pass
        del sockets[number]
        one.close()

json.dump({"cpuMicros": (time.process_time() - cpu) * 1e6, "answers": answers}, sys.stdout)
