/*
 * The read-write lock, django_dblock.coordination.rwlock, for Spin: clients that read, write and
 * downgrade, that may stop anywhere for any time; leases that end at any time; a purge.
 *
 *     spin -a rwlock.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan
 *
 * What a run shows, in every order of the steps within the bounds below:
 *
 *   BESIDE  no guarded transaction of a writer is open beside another guarded one;
 *   STALE   a reader commits only if no writer was granted since, a writer only if nobody was;
 *   TOKENS  a writer's token is greater than all before it, a reader's than all writers' before it;
 *   GAP     a downgrade: nobody else was granted between the write lease and the read lease;
 *   TURN    with -DQUEUE: once a writer has its ticket, each other client reads at most once more
 *           before it;
 *   and no run gets stuck, or ends with a row locked.
 *
 * The steps, by the names in django_dblock/sql: MAKE_GATE, LOCK_GATE, and then ACQUIRE_READ,
 * ACQUIRE_WRITE or DOWNGRADE, each of which is its snapshot, its row locks one by one, and its
 * writes with the COMMIT; GUARD; RELEASE; PURGE; TAKE_TICKET.
 *
 * One -D breaks one part of the protocol, and must be refuted (tests/faults/test_model.py):
 *
 *   ONE_STATEMENT   the readers are counted in the snapshot of the statement that waits for the gate
 *   ANY_GATE        a grant takes a gate that LOCK_GATE has not locked: it was purged, and made again
 *   READERS_KEEP    a writer's grant leaves the tokens of ended readers as they are
 *   WRITER_KEEPS    a reader's grant leaves the token of an ended writer as it is
 *   DOWNGRADE_KEEPS a downgrade leaves it as it is
 *   COUNT_LIVE      a writer looks for live readers, and does not lock the rows of the others
 *   GAPS            a downgrade is a release and an acquire
 *   OLD_TOKENS      the writer's token passes that of the last writer alone
 *   QUEUE, NO_TURN  readers do not look at the writers' tickets
 *
 * SEE_READERS, SEE_WRITE, SEE_DOWNGRADE, SEE_REFUSAL, SEE_PURGE, SEE_OVERTAKE say that something
 * can't happen, which can.
 *
 * What is left out, and why nothing is lost by it:
 *
 *   - Time. A lease may end at any moment; a renewal only delays that.
 *   - That a guard and a renewal ask for the expiry: they judge it before they lock the row, and
 *     not again unless it was written. So here a guard asks for the token alone, as in lease.pml.
 *   - Tokens count from the clock: here the clock only passes what is purged, as PURGE demands.
 *   - Crashes: who crashes takes no further step; the server's rollback is a branch.
 *   - Force releases: a row of their own, as in lease.pml.
 */

#ifndef CLIENTS
#define CLIENTS 2
#endif
#ifndef GRANTS
#define GRANTS 4
#endif
#define ROWS 3
#define NOBODY 9

/* The gate, slot 0: whether it is there (2: not committed), which one, and its lease. */
byte gate = 0;
byte gate_number = 0;
byte gate_token = 0;
bool gate_live = false;
bool gate_owned = false;          /* owner <> '': nobody was granted since */
byte gate_lock = NOBODY;          /* FOR NO KEY UPDATE */
bool gate_taken = false;          /* FOR UPDATE, by the same */
byte gate_shared = 0;             /* guards: FOR KEY SHARE */

/* The readers' rows, slots 1 … ROWS. */
bool row[ROWS];
byte token[ROWS];
bool live[ROWS];
bool owned[ROWS];
byte locked[ROWS] = NOBODY;
byte shared[ROWS];

byte clock = 1;                   /* tokens that are purged are less */
byte grants = 0;

/* The queue. */
byte tickets = 0;
byte ticket[CLIENTS];             /* 0: none */
bool waits_to_write[CLIENTS];

/* What only the properties look at. */
byte newest = 0;                  /* the greatest token */
byte latest_write = 0;
byte reading = 0;                 /* guarded transactions that are open */
byte writing = 0;
byte overtaken[CLIENTS];          /* reads of others since a writer has its ticket */
bool purged = false;

inline later(a, b, result) {
    if
    :: a > b -> result = a
    :: else -> result = b
    fi
}

#define GATE_FREE (!gate_live && gate_shared == 0)
#define ROW_FREE(s) (row[s] && !live[s] && shared[s] == 0 && locked[s] == NOBODY)

/* The end of the transaction, without a grant or after it: all its locks are free. */
inline end_transaction() {
    if
    :: gate_lock == me ->
        gate_lock = NOBODY; gate_taken = false;
        if
        :: gate == 2 -> gate = 1
        :: else
        fi
    :: else
    fi;
    for (s : 0 .. ROWS - 1) {
        if
        :: locked[s] == me -> locked[s] = NOBODY
        :: else
        fi
    }
    s = 0
}

/* MAKE_GATE and LOCK_GATE: a snapshot each, and the second waits for the row. */
inline make_gate() {
    if
    :: d_step { gate == 1 -> skip }
    :: d_step { gate == 0 ->
        gate = 2; gate_number++; gate_token = 0; gate_live = false; gate_owned = false;
        gate_lock = me }
    fi                            /* gate == 2: it waits for who makes it */
}

inline lock_gate() {
    if
    :: d_step { gate == 1 && gate_lock == NOBODY -> gate_lock = me; mark = gate_number }
    :: d_step { gate == 2 && gate_lock == me -> mark = gate_number }
    :: d_step { gate == 0 || (gate == 2 && gate_lock != me) -> mark = 0 }
    fi
}

#ifdef NO_TURN
#define LOOKS writes
#else
#define LOOKS (writes || waits_to_write[s])
#endif

/* The snapshot of the third statement: which rows there are. */
inline take_snapshot() {
    d_step {
        seen_gate = gate_number * (gate == 1 || (gate == 2 && gate_lock == me));
        for (s : 0 .. ROWS - 1) {
            seen[s] = row[s]
        }
        s = 0;
#ifdef QUEUE
        before = false;
        for (s : 0 .. CLIENTS - 1) {
            if
            :: s != me && ticket[s] != 0 && (ticket[me] == 0 || ticket[s] < ticket[me]) && LOOKS ->
                before = true
            :: else
            fi
        }
        s = 0
#endif
    }
}

#ifdef ANY_GATE
#define MARKED (gate_lock == me || gate_lock == NOBODY)
#else
#define MARKED (gate_lock == me && mark == gate_number)
#endif

/* FOR UPDATE SKIP LOCKED of the gate. */
inline take_gate() {
    if
    :: d_step {
        seen_gate != 0 && seen_gate == gate_number && gate != 0 && MARKED && GATE_FREE && !before ->
        gate_lock = me; gate_taken = true; taken = true }
    :: d_step {
        !(seen_gate != 0 && seen_gate == gate_number && gate != 0 && MARKED && GATE_FREE && !before)
        -> taken = false }
    fi
}

/* The reader's row: the lowest free one that the snapshot shows, or one more. */
inline grant_read() {
    slot = ROWS;
    for (s : 0 .. ROWS - 1) {
        if
        :: slot == ROWS && seen[s] && ROW_FREE(s) -> slot = s
        :: else
        fi
    }
    for (s : 0 .. ROWS - 1) {
        if
        :: slot == ROWS && !row[s] -> slot = s; row[s] = true; token[s] = 0
        :: else
        fi
    }
    s = 0;
    if
    :: slot < ROWS ->
        later(token[slot] + 1, gate_token + 2, next);
        later(next, clock, next);
        token[slot] = next; live[slot] = true; owned[slot] = true;
        mine = next; writer = false; grants++;
        assert(next > latest_write);                                          /* TOKENS */
        later(next, newest, newest);
#ifdef QUEUE
        for (s : 0 .. CLIENTS - 1) {
            if
            :: s != me && ticket[s] != 0 && waits_to_write[s] ->
                overtaken[s] = overtaken[s] + 1;
#ifdef SEE_OVERTAKE
                assert(overtaken[s] == 0);
#endif
                assert(overtaken[s] < CLIENTS)                                /* TURN */
            :: else
            fi
        }
        s = 0;
        ticket[me] = 0;
#endif
        next = 0
    :: else -> slot = 0
    fi
}

inline pass_gate() {
    if
    :: gate_owned -> gate_owned = false;
        gate_token = gate_token + 1
    :: else
    fi
}

#ifdef COUNT_LIVE
#define PASSES(s) (row[s] && !live[s])
#else
#define PASSES(s) false
#endif

/* In a transaction: is it still ours? Then keep who wants it away until COMMIT. */
inline work() {
    if
    :: writer ->
        if
        :: d_step { !gate_taken && gate != 0 && gate_token == mine -> gate_shared++; writing++;
            assert(writing + reading == 1) }                                  /* BESIDE */
            if
            :: d_step { gate_shared--; writing--;
                assert(mine == newest) }                                      /* STALE */
            :: d_step { gate_shared--; writing-- }           /* rolled back */
            fi
        :: d_step { !(gate != 0 && gate_token == mine) -> mine = 0 }          /* LockLost */
        fi
    :: else ->
        if
        :: d_step { locked[slot] == NOBODY && row[slot] && token[slot] == mine ->
            shared[slot] = shared[slot] + 1; reading++;
            assert(writing == 0);                                             /* BESIDE */
#ifdef SEE_READERS
            assert(reading == 1)
#endif
            }
            if
            :: d_step { shared[slot] = shared[slot] - 1; reading--;
                assert(latest_write < mine) }                                 /* STALE */
            :: d_step { shared[slot] = shared[slot] - 1; reading-- }
            fi
        :: d_step { !(row[slot] && token[slot] == mine) -> mine = 0;          /* LockLost */
#ifdef SEE_REFUSAL
            assert(false)
#endif
            }
        fi
    fi
}

inline leave() {
    if
    :: d_step { mine != 0 && writer && gate_lock == NOBODY ->
        if
        :: gate != 0 && gate_token == mine -> gate_live = false
        :: else
        fi;
        mine = 0; slot = 0; writer = false }
    :: d_step { mine != 0 && !writer && locked[slot] == NOBODY ->
        if
        :: row[slot] && token[slot] == mine -> live[slot] = false
        :: else
        fi;
        mine = 0; slot = 0 }
    :: d_step { true -> mine = 0; slot = 0; writer = false }  /* it is lost, or was before */
    fi
}

proctype Client(byte me) {
    byte mark, seen_gate, s, slot, mine, kept, next, count, most;
    bool seen[ROWS];
    bool before, taken, writes, writer;
end:
    do
    :: grants < GRANTS ->
        if
        :: writes = true
        :: writes = false
        fi;
#ifdef QUEUE
        if
        :: d_step { ticket[me] == 0 && tickets < 3 ->                         /* TAKE_TICKET */
            tickets++; ticket[me] = tickets; waits_to_write[me] = writes; overtaken[me] = 0 }
        :: true
        fi;
again:
#endif
        make_gate();
#ifdef ONE_STATEMENT
        take_snapshot();
        lock_gate();
#else
        lock_gate();
        take_snapshot();
#endif
        take_gate();
        if
        :: taken && !writes ->
            d_step {
                if
                :: grants < GRANTS ->
                    grant_read();
#ifndef WRITER_KEEPS
                    if
                    :: mine != 0 -> pass_gate()
                    :: else
                    fi
#endif
                :: else
                fi;
                end_transaction()
            }
        :: taken && writes ->
            d_step { most = 0; count = 0 }
            do
            :: d_step {
                count < ROWS ->
                if
                :: seen[count] && ROW_FREE(count) ->
                    locked[count] = me; later(token[count], most, most)
                :: seen[count] && !ROW_FREE(count) && !PASSES(count) -> taken = false
                :: seen[count] && !ROW_FREE(count) && PASSES(count)
                :: !seen[count]
                fi;
                count++ }
            :: count == ROWS -> break
            od;
            skip;
            d_step {
                if
                :: taken && grants < GRANTS ->
#ifndef READERS_KEEP
                    for (s : 0 .. ROWS - 1) {
                        if
                        :: locked[s] == me && owned[s] -> token[s] = token[s] + 1; owned[s] = false
                        :: else
                        fi
                    }
                    s = 0;
#endif
#ifdef OLD_TOKENS
                    most = 0;
#endif
                    later(gate_token + 1, most + 2, next);
                    later(next, clock, next);
                    gate_token = next; gate_live = true; gate_owned = true;
                    mine = next; writer = true; grants++;
                    assert(next > newest);                                    /* TOKENS */
                    newest = next; latest_write = next;
                    next = 0;
#ifdef SEE_WRITE
                    assert(false);
#endif
#ifdef QUEUE
                    ticket[me] = 0;
#endif
                :: else
                fi;
                most = 0; count = 0;
                end_transaction()
            }
        :: !taken -> d_step { end_transaction() }
        fi;
        d_step {
            mark = 0; seen_gate = 0; taken = false; before = false;
            for (s : 0 .. ROWS - 1) { seen[s] = false }
            s = 0
        }
#ifdef QUEUE
        if
        :: mine == 0 && ticket[me] != 0 -> goto again
        :: d_step { mine == 0 -> ticket[me] = 0 }                             /* it gives up */
        :: mine != 0
        fi;
#endif
        if
        :: d_step { mine != 0 -> mine = 0; slot = 0; writer = false }         /* no answer comes */
        :: true
        fi;
        do
        :: mine != 0 -> work()
#ifdef GAPS
        :: mine != 0 && writer && grants < GRANTS ->                          /* DOWNGRADE */
            d_step {
                if
                :: gate_lock == NOBODY && gate == 1 && gate_token == mine -> gate_live = false
                :: else
                fi
            }
            d_step {
                if
                :: gate_lock == NOBODY && gate == 1 && GATE_FREE && grants < GRANTS ->
                    assert(mine == newest);                                   /* GAP */
                    grant_read(); pass_gate()
                :: else -> mine = 0; writer = false
                fi
            }
#else
        :: mine != 0 && writer && grants < GRANTS ->                          /* DOWNGRADE */
            make_gate();
            lock_gate();
            take_snapshot();
            d_step {
                if
                :: mark == gate_number && gate_token == mine && gate_live && grants < GRANTS ->
                    assert(mine == newest);                                   /* GAP */
                    kept = mine;
                    grant_read();
                    if
                    :: !writer -> gate_live = false;
#ifndef DOWNGRADE_KEEPS
                        pass_gate();
#endif
#ifdef SEE_DOWNGRADE
                        assert(false)
#endif
                    :: else
                    fi
                :: else -> mine = 0; writer = false
                fi;
                end_transaction();
                mark = 0; seen_gate = 0; before = false;
                for (s : 0 .. ROWS - 1) { seen[s] = false }
                s = 0
            }
            if
            :: d_step { mine != 0 && !writer -> mine = kept; slot = 0; writer = true }
                                             /* another thread still has the write lease */
            :: true
            fi;
            kept = 0
#endif
        :: break
        od;
        leave();
        writes = false
    od
}

/* Leases end, whenever. */
proctype Time() {
end:
    do
    :: d_step { gate_live -> gate_live = false }
    :: d_step { live[0] -> live[0] = false }
    :: d_step { live[1] -> live[1] = false }
    :: d_step { live[2] -> live[2] = false }
    od
}

/* PURGE: rows that nobody holds, guards or has locked, when the clock has passed their tokens. */
proctype Purge() {
    byte s;
end:
    do
    :: d_step { gate == 1 && gate_number < 2 && GATE_FREE && gate_lock == NOBODY ->
        gate = 0;
        later(gate_token + 1, clock, clock); gate_token = 0; gate_owned = false;
#ifdef SEE_PURGE
        assert(!(live[0] || live[1] || live[2]))
#endif
        }
    :: d_step { row[0] && ROW_FREE(0) ->
        row[0] = false; later(token[0] + 1, clock, clock); token[0] = 0; owned[0] = false }
    od
}

init {
    byte s;
    atomic {
        for (s : 0 .. CLIENTS - 1) { run Client(s) }
        run Time();
#ifdef PURGES
        run Purge()
#endif
    }
    timeout;
    assert(gate_lock == NOBODY && gate_shared == 0 && reading + writing == 0) /* AT REST */
}
