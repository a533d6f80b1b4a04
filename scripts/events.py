"""Writes realistic events to a Kafka topic and says exactly what Kafka acknowledged.

Run it through scripts/events, which provides confluent-kafka.

A row depends on --seed and on its event_id alone, except for `ts`, the time at which it was
produced. Event ids are consecutive from --start-id, so a table that took every event exactly once
holds `count` rows whose event_id and amount add up to the sums printed here.

At the end one line of JSON goes to stdout:
  count, sum_amount, sum_event_id   acknowledged events and sums over them
  bad                               acknowledged undecodable records, not part of the above
  partitions, bad_partitions        the same counts for each partition
  end_offsets                       for each partition written: last acknowledged offset + 1
  failed                            records that Kafka refused or that timed out (they may still
                                    be in the topic); not 0 makes the exit code 1
  aborted                           events in transactions that were aborted on purpose
  seconds, mb, rows_per_second      from the first record to the last acknowledgement
"""

import argparse
import base64
import json
import os
import random
import signal
import sys
import time
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

TEMPLATES = 20_000
USERS = 5_000
PAYLOAD = 64 << 20  # random characters of which --payload takes its pieces
SLICE = 0.010  # seconds between two helpings when a rate is asked for
CHUNK = 1_000  # rows that share one timestamp at full speed
MAX_BACKLOG = 1.0  # seconds of delay that --rate catches up with; more is given up

COUNTRIES = ["DE", "FR", "US", "GB", "IN", "BR", "JP", "NL", "SE", "PL", "ES", "IT", "CA", "MX"]
DEVICES = ["ios", "android", "web", "tablet", "tv"]
TYPES = ["view", "view", "view", "view", "click", "click", "search", "cart", "purchase", "refund"]
PATHS = ["/", "/search", "/cart", "/checkout", "/account/orders", "/p/%d", "/c/%d", "/help/%d"]
NOTES = ["", "first visit", "coupon SPRING", "gift wrap", 'said "later"', "Zürich, café", "東京 ✓",
         "line\nbreak", "back\\slash", "returned by mail after two weeks"]


class Templates:
    """Everything of a row that does not change from one use to the next, rendered in advance."""

    def __init__(self, seed):
        rng = random.Random(seed)
        self.keys, self.tails, self.amounts = [], [], []
        for _ in range(TEMPLATES):
            user = int(USERS * rng.random() ** 1.3)  # some users do more than others
            amount = min(int(rng.lognormvariate(7.5, 1.0)), 500_000)  # cents
            kind = rng.choice(TYPES)
            if kind == "refund":
                amount = -amount
            path = rng.choice(PATHS)
            row = {
                "user_id": 100_000 + user,
                "country": rng.choice(COUNTRIES),
                "device": rng.choice(DEVICES),
                "url": "https://shop.example" + (path % rng.randrange(10_000) if "%" in path else path),
                "event_type": kind,
                "amount": amount,
                "price": amount / 100,
                "session": "%032x" % rng.getrandbits(128),
                "note": rng.choice(NOTES) or None,
            }
            rest = json.dumps(row, separators=(",", ":"), ensure_ascii=False)
            self.tails.append(rest[1:].encode())
            self.keys.append(b"%d" % row["user_id"])
            self.amounts.append(amount)


def payload(options):
    """For an event_id what else its row gets: so many random characters, which hardly compress."""
    length = options.payload
    pool = base64.b64encode(random.Random(options.seed).randbytes((PAYLOAD + length) * 3 // 4))

    def piece(event_id):
        start = event_id * 2_654_435_761 % PAYLOAD
        return b',"payload":"' + pool[start:start + length] + b'"}'

    return piece


BAD_KINDS = [  # what a careless producer sends; %d is the id that a good event would have had
    b'{"event_id":%d,"ts":"2024-01-01T00:00:0',
    b"%d;2024-01-01 00:00:00;not JSON at all",
    b'{"event_id":"number %d","ts":"2024-01-01T00:00:00.000Z","user_id":"abc","amount":"many"}',
    b'[{"event_id":%d}]',
    b'{"event_id":%d,"note":"\xff\xfe invalid UTF-8"}',
    b'{"event_id":%d,"ts":"yesterday","user_id":{},"amount":[1,2],"price":"cheap"}',
]


class Totals:
    """What Kafka has acknowledged so far."""

    def __init__(self):
        self.count = self.sum_amount = self.sum_event_id = self.bad = self.bytes = 0
        self.failed = self.aborted = 0
        self.first_error = None
        self.partitions, self.bad_partitions, self.end_offsets = {}, {}, {}
        self.started = self.last = time.monotonic()

    def good_acked(self, event_id, amount, error, message):
        if error is not None:
            self.failure(error)
            return
        self.count += 1
        self.sum_event_id += event_id
        self.sum_amount += amount
        where = message.partition()
        self.partitions[where] = self.partitions.get(where, 0) + 1
        self.end_offsets[where] = message.offset() + 1

    def bad_acked(self, error, message):
        if error is not None:
            self.failure(error)
            return
        self.bad += 1
        where = message.partition()
        self.bad_partitions[where] = self.bad_partitions.get(where, 0) + 1
        self.end_offsets[where] = message.offset() + 1

    def failure(self, error):
        self.failed += 1
        self.first_error = self.first_error or error.str()

    def absorb(self, other):
        """Adds the totals of a transaction that was committed."""
        for name in ("count", "sum_amount", "sum_event_id", "bad", "failed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_error = self.first_error or other.first_error
        for where, count in other.partitions.items():
            self.partitions[where] = self.partitions.get(where, 0) + count
        for where, count in other.bad_partitions.items():
            self.bad_partitions[where] = self.bad_partitions.get(where, 0) + count
        self.end_offsets.update(other.end_offsets)

    def as_json(self, done):
        seconds = max(self.last - self.started, 1e-6)
        result = {
            "count": self.count,
            "sum_amount": self.sum_amount,
            "sum_event_id": self.sum_event_id,
            "bad": self.bad,
            "partitions": {str(p): self.partitions[p] for p in sorted(self.partitions)},
            "bad_partitions": {str(p): self.bad_partitions[p] for p in sorted(self.bad_partitions)},
            "end_offsets": {str(p): self.end_offsets[p] for p in sorted(self.end_offsets)},
            "failed": self.failed,
            "aborted": self.aborted,
            "seconds": round(seconds, 3),
            "mb": round(self.bytes / 1e6, 3),
            "rows_per_second": round((self.count + self.bad) / seconds),
            "done": done,
        }
        if self.first_error:
            result["error"] = self.first_error
        return json.dumps(result)


class Run:
    """One `produce`: hands rows to the client at full speed or at a steady rate."""

    def __init__(self, options):
        self.options = options
        self.templates = Templates(options.seed)
        self.payload = payload(options) if options.payload else None
        self.totals = self.current = Totals()
        self.stopping = self.interrupted_twice = False
        self.fatal = None
        self.next_report = 0.0
        self.shown = (0, time.monotonic())
        self.behind = 0.0
        self.producer = Producer(self.client_settings())
        self.produced = self.produced_bad = self.in_transaction = self.transactions = 0

    def client_settings(self):
        options = self.options
        settings = {
            "bootstrap.servers": options.brokers,
            "client.id": "tidemill-events",
            "acks": "all",
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "reconnect.backoff.max.ms": 1_000,
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "compression.type": options.compression,
            "queue.buffering.max.messages": 100_000,
            "queue.buffering.max.kbytes": 262_144,
            "message.timeout.ms": int(options.timeout * 1000),
            "topic.metadata.refresh.interval.ms": 5_000,  # notice added partitions soon
            "error_cb": self.client_error,
            "log_level": 2,
        }
        if options.transaction_rows:
            settings["transactional.id"] = options.transactional_id
            settings["transaction.timeout.ms"] = 60_000
            settings["message.timeout.ms"] = min(int(options.timeout * 1000), 60_000)
        settings.update(pair.split("=", 1) for pair in options.client)
        return settings

    def client_error(self, error):
        if error.fatal():
            self.fatal = error.str()

    def stop(self, *_):
        self.stopping = True

    # ---- what to send

    def good_limit(self):
        return float("inf") if self.options.follow else self.options.count

    def bad_due(self):
        """How many bad records should have been sent before the next good one."""
        options = self.options
        if options.bad_every:
            return self.produced // options.bad_every
        if self.produced >= options.count:
            return options.bad
        # In the middle of each of `bad` equal stretches.
        return int(self.produced * options.bad / options.count + 0.5) if options.bad else 0

    def send(self, rows):
        """Hands over up to `rows` good events with one timestamp, and the bad ones between them."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + ".%03dZ" % (now % 1 * 1000)
        head = b'{"event_id":%d,"ts":"' + stamp.encode() + b'",'
        keys, tails, amounts = self.templates.keys, self.templates.tails, self.templates.amounts
        produce, topic, acked = self.producer.produce, self.options.topic, self.current.good_acked
        has_bad = self.options.bad or self.options.bad_every
        event_id = self.options.start_id + self.produced
        size = 0
        for event_id in range(event_id, event_id + rows):
            if has_bad:
                self.send_bad_due()
            which = (event_id * 2_654_435_761 >> 8) % TEMPLATES
            value = head % event_id + tails[which]
            if self.payload:
                value = value[:-1] + self.payload(event_id)
            on_delivery = partial(acked, event_id, amounts[which])
            try:
                produce(topic, value, keys[which], on_delivery=on_delivery)
            except BufferError:
                if not self.produce_patiently(value, keys[which], on_delivery):
                    break
            size += len(value)
            self.produced += 1
        self.totals.bytes += size
        self.in_transaction += rows
        self.producer.poll(0)

    def send_bad_due(self):
        while self.produced_bad < self.bad_due() and not self.stopping:
            value = BAD_KINDS[self.produced_bad % len(BAD_KINDS)] % (self.options.start_id + self.produced)
            key = self.templates.keys[self.produced_bad % TEMPLATES]
            self.produce_patiently(value, key, self.current.bad_acked)
            self.produced_bad += 1
            self.totals.bytes += len(value)

    def produce_patiently(self, value, key, on_delivery):
        """Waits while the client's queue is full; False when the run must stop instead."""
        while not self.fatal:
            try:
                self.producer.produce(self.options.topic, value, key, on_delivery=on_delivery)
                return True
            except BufferError:
                self.producer.poll(0.02)
                self.report()
                if self.stopping:
                    return False
        return False

    # ---- how fast

    def run(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop)
        try:
            self.send_all()
        except KafkaException as problem:
            self.fatal = problem.args[0].str()
        self.drain()
        self.totals.last = time.monotonic()
        self.totals.failed += len(self.producer)
        self.totals.first_error = self.totals.first_error or self.fatal
        if len(self.producer) and not self.totals.first_error:
            self.totals.first_error = "interrupted before Kafka acknowledged all"
        self.write_summary(done=True)
        print(self.totals.as_json(done=True), flush=True)
        if self.totals.failed or self.fatal:
            print("events: %d records were not acknowledged: %s"
                  % (self.totals.failed, self.totals.first_error), file=sys.stderr)
            return 1
        return 0

    def send_all(self):
        if self.options.transaction_rows:
            self.producer.init_transactions(30)
            self.begin()
        self.totals.started = self.totals.last = time.monotonic()
        if self.options.rate:
            self.run_at_rate()
        else:
            self.run_at_full_speed()
        if not self.stopping:
            self.send_bad_due()
        if self.options.transaction_rows:
            self.end_transaction(again=False)

    def rows_left(self):
        left = self.good_limit() - self.produced
        if self.options.transaction_rows:
            left = min(left, self.options.transaction_rows - self.in_transaction)
        return left

    def finished(self):
        return self.stopping or self.fatal or self.produced >= self.good_limit()

    def run_at_full_speed(self):
        while not self.finished():
            self.send(min(CHUNK, self.rows_left()))
            self.after_helping()

    def run_at_rate(self):
        rate = self.options.rate
        # At most double helpings, so that a hiccup is made up for smoothly.
        most = max(1, int(2 * rate * SLICE))
        begin = time.monotonic()
        while not self.finished():
            elapsed = time.monotonic() - begin
            due = elapsed * rate - self.produced
            if due > rate * MAX_BACKLOG:
                given_up = due / rate - MAX_BACKLOG
                begin += given_up
                self.behind += given_up
            rows = min(int(due), most, self.rows_left())
            if rows > 0:
                self.send(rows)
            self.after_helping()
            next_slice = begin + (int((time.monotonic() - begin) / SLICE) + 1) * SLICE
            pause = next_slice - time.monotonic()
            if pause > 0:
                time.sleep(pause)

    def after_helping(self):
        if self.options.transaction_rows and self.in_transaction >= self.options.transaction_rows:
            self.end_transaction(again=True)
        self.report()

    def drain(self):
        """Waits for all acknowledgements; after a signal for at most 30 s, a second one ends it."""
        limit = None
        already_stopping = self.stopping
        if self.stopping:
            signal.signal(signal.SIGINT, self.stop_now)
            signal.signal(signal.SIGTERM, self.stop_now)
        while len(self.producer) and not self.fatal and not self.interrupted_twice:
            self.producer.poll(0.05)
            self.report()
            if self.stopping and limit is None:
                limit = time.monotonic() + 30
                if not already_stopping:
                    signal.signal(signal.SIGINT, self.stop_now)
                    signal.signal(signal.SIGTERM, self.stop_now)
            if limit is not None and time.monotonic() > limit:
                break

    def stop_now(self, *_):
        self.interrupted_twice = True

    # ---- transactions

    def begin(self):
        self.producer.begin_transaction()
        self.current = Totals()
        self.in_transaction = 0

    def end_transaction(self, again):
        self.transactions += 1
        every = self.options.abort_every
        abort = bool(every) and self.transactions % every == 0
        if abort:
            self.producer.flush(30)
            self.producer.abort_transaction(30)
            self.totals.aborted += self.current.count
            self.totals.failed += self.current.failed
        else:
            self.producer.commit_transaction(60)
            self.totals.absorb(self.current)
        if again:
            self.begin()

    # ---- telling

    def report(self):
        now = time.monotonic()
        if now < self.next_report:
            return
        self.next_report = now + 0.5
        self.totals.last = now
        self.write_summary(done=False)
        if self.options.progress and now - self.shown[1] >= 0.95:
            done = self.totals.count + self.totals.bad
            speed = (done - self.shown[0]) / (now - self.shown[1])
            self.shown = (done, now)
            line = "%12s acknowledged, %9s rows/s" % (format(done, ","), format(round(speed), ","))
            if self.behind:
                line += ", %.1f s behind the asked rate" % self.behind
            print(line, file=sys.stderr, flush=True)

    def write_summary(self, done):
        path = self.options.summary
        if not path:
            return
        with open(path + ".part", "w") as file:
            file.write(self.totals.as_json(done) + "\n")
        os.replace(path + ".part", path)


def create_topic(options):
    """Creates the topic unless it is there, and waits until every partition has a leader."""
    admin = AdminClient({"bootstrap.servers": options.brokers, "log_level": 2})
    try:
        admin.list_topics(timeout=15)
    except KafkaException as problem:
        raise SystemExit("events: no answer from %s: %s" % (options.brokers, problem.args[0].str()))
    config = dict(pair.split("=", 1) for pair in options.config)
    topic = NewTopic(options.topic, num_partitions=options.partitions,
                     replication_factor=options.replication, config=config)
    try:
        admin.create_topics([topic], operation_timeout=15)[options.topic].result()
        created = True
    except KafkaException as problem:
        if problem.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise SystemExit("events: topic %s: %s" % (options.topic, problem.args[0].str()))
        created = False
    deadline = time.monotonic() + 30
    while True:
        known = admin.list_topics(options.topic, timeout=10).topics[options.topic]
        if known.error is None and known.partitions and all(p.leader >= 0 for p in known.partitions.values()):
            break
        if time.monotonic() > deadline:
            raise SystemExit("events: topic %s has partitions without a leader" % options.topic)
        time.sleep(0.02)
    if options.partitions > 0 and len(known.partitions) != options.partitions:
        raise SystemExit("events: topic %s has %d partitions, not %d"
                         % (options.topic, len(known.partitions), options.partitions))
    return {"topic": options.topic, "partitions": len(known.partitions), "created": created}


def replay_script(options):
    """Does what each line of stdin says and answers with a line: for tests that need a certain history.

    A line is a JSON object: {"send": [partition, key, value], "headers": {..}} (key, value may be null), {"begin": 1},
    {"commit": 1}, {"abort": 1}, {"flush": 1}. The answer to a flush, commit or abort is {"sent": count}, where a record counts when Kafka has
    acknowledged it; to anything that fails it is {"error": text}, and the script ends.
    """
    settings = {"bootstrap.servers": options.brokers, "linger.ms": 0, "acks": "all", "message.timeout.ms": 30000}
    if options.transactional_id:
        settings["transactional.id"] = options.transactional_id
        settings["transaction.timeout.ms"] = 300000
    producer = Producer(settings)
    if options.transactional_id:
        producer.init_transactions(30)
    sent, failed = [0], []

    def delivered(error, _message):
        if error is None:
            sent[0] += 1
        else:
            failed.append(str(error))

    for line in sys.stdin:
        order = json.loads(line)
        try:
            if "send" in order:
                partition, key, value = order["send"]
                headers = list(order.get("headers", {}).items())
                producer.produce(options.topic, partition=partition, key=key, value=value, headers=headers,
                                 on_delivery=delivered)
                producer.poll(0)
                continue
            if "begin" in order:
                producer.begin_transaction()
            elif "commit" in order:
                producer.commit_transaction(30)
            elif "abort" in order:
                producer.flush(30)  # what is aborted shall be in the log
                producer.abort_transaction(30)
            producer.flush(30)
        except KafkaException as error:
            failed.append(str(error))
        print(json.dumps({"error": failed[0]} if failed else {"sent": sent[0]}), flush=True)
        if failed:
            return 1
    return 0


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="scripts/events", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    topic = argparse.ArgumentParser(add_help=False)
    topic.add_argument("--brokers", default="127.0.0.1:19092", help="bootstrap servers (default %(default)s)")
    topic.add_argument("--topic", required=True)
    topic.add_argument("--partitions", type=int, default=-1,
                       help="partitions of the topic; when it exists with another number, stop (default: the broker's)")
    topic.add_argument("--replication", type=int, default=-1, help="copies of a new topic (default: the broker's)")
    topic.add_argument("--config", action="append", default=[], metavar="K=V", help="setting of a new topic")

    commands.add_parser("create-topic", parents=[topic], help="create a topic and wait for its leaders")
    produce = commands.add_parser("produce", parents=[topic], help="write events, creating the topic when absent",
                                  description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    produce.add_argument("--count", type=int, help="good events to write")
    produce.add_argument("--follow", action="store_true", help="write until SIGINT or SIGTERM")
    produce.add_argument("--rate", type=float, help="rows per second, evenly spread (default: as fast as possible)")
    produce.add_argument("--bad", type=int, default=0, metavar="K", help="undecodable records to spread among --count events")
    produce.add_argument("--bad-every", type=int, default=0, metavar="M", help="one undecodable record after every M events")
    produce.add_argument("--seed", type=int, default=1)
    produce.add_argument("--payload", type=int, default=0, metavar="N", help="N random characters in every row beside the rest")
    produce.add_argument("--start-id", type=int, default=0, help="first event_id")
    produce.add_argument("--transaction-rows", type=int, default=0, metavar="M", help="write in transactions of M events")
    produce.add_argument("--abort-every", type=int, default=0, metavar="X", help="abort every Xth transaction")
    produce.add_argument("--transactional-id", default="tidemill-events")
    produce.add_argument("--compression", default="none", choices=["none", "gzip", "snappy", "lz4", "zstd"])
    produce.add_argument("--timeout", type=float, default=300, help="seconds until an unacknowledged record has failed")
    produce.add_argument("--client", action="append", default=[], metavar="K=V", help="any setting of librdkafka")
    produce.add_argument("--summary", metavar="FILE", help="keep the running totals in FILE, replaced twice a second")
    produce.add_argument("--progress", action="store_true", default=sys.stderr.isatty(), help="a line on stderr each second")
    script = commands.add_parser("script", help="do what each line of stdin says (for tests)",
                                 description=replay_script.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    script.add_argument("--brokers", default="127.0.0.1:19092", help="bootstrap servers (default %(default)s)")
    script.add_argument("--topic", required=True)
    script.add_argument("--transactional-id", default="", help="write in transactions under this id")
    options = parser.parse_args(arguments)

    if options.command == "produce":
        if options.follow == (options.count is not None):
            produce.error("give either --count or --follow")
        if options.payload < 0:
            produce.error("--payload must not be negative")
        if options.count is not None and options.count < 0:
            produce.error("--count must not be negative")
        if options.follow and options.bad:
            produce.error("--bad needs --count; with --follow use --bad-every")
        if options.rate is not None and options.rate <= 0:
            produce.error("--rate must be positive")
        if options.abort_every and not options.transaction_rows:
            produce.error("--abort-every needs --transaction-rows")
    return options


def main():
    options = parse(sys.argv[1:])
    if options.command == "script":
        return replay_script(options)
    result = create_topic(options)
    if options.command == "create-topic":
        print(json.dumps(result))
        return 0
    return Run(options).run()


if __name__ == "__main__":
    sys.exit(main())
