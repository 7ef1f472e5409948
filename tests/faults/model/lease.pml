/*
 * The leases of django_dblock.fencing, for Spin: two holders that may stop anywhere for any time,
 * their heartbeats, a purge, an operator, and the server's clock.
 *
 *     spin -a lease.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan
 *
 * What a run shows, in every order of the steps within the bounds below:
 *
 *   TOKENS   each grant's token is greater than that of every grant before it;
 *   COMMIT   a write commits only under the token of the latest grant;
 *   UPDATES  no acknowledged write is lost: the counter is the number of commits;
 *   TRUST    no two holders trust their lease at one moment (an operator aside, who may end one);
 *   and no run gets stuck, or ends with the row locked.
 *
 * One -D breaks one part of the protocol, and must be refuted (tests/faults/test_model.py):
 *
 *   WRITE_ONLY_FENCE    no guard: the write says "fence_token <= mine", and that is all
 *   CHECK_ONLY          no guard: the holder looks at its own clock, and writes
 *   APP_CLOCK           expiries are set and judged by the holders' clocks, one of which is ahead
 *   NO_RECHECK_GUARD    the guard waits for the row, and does not look at it again
 *   NO_RECHECK_ACQUIRE  likewise who takes the lease
 *   EARLY_TOKEN         the token is worked out before the row is locked
 *   TRUST_FROM_ANSWER   trust counts from when the answer came
 *   PURGE_ANY           the purge does not wait for the clock to pass the token
 *
 * What must hold as well: OPERATOR (force release), and CLAIM, the fence column of a model in
 * another database, which promises UPDATES alone.
 * SEE_TAKEOVER, SEE_COMMITS, SEE_REFUSAL, SEE_RENEWED say that something can't happen, which can:
 * refuting them shows that the above is not true for want of anything happening.
 *
 * What is left out, and why nothing is lost by it:
 *
 *   - Crashes of a process: one that crashes is one that takes no further step, and each run is
 *     checked up to every point. What the server does about it, rolling back, is a branch.
 *   - A statement that writes is one step, when it has the row's lock and sets it. Until it commits
 *     it keeps the lock: who skips locked rows has tried in vain, which changes nothing, and a guard
 *     that waits is one whose step comes later. If it does not commit, it has not happened.
 *   - READ COMMITTED judges a WHERE by a snapshot, and again, once it has the lock, if the row was
 *     written since. So when it has the lock, the row's token is what was asked for, but the row may
 *     have expired since the first look, if nobody took it. Hence here a guard and a renewal ask for
 *     the token alone: they do more than the real ones, and what holds for them holds for those.
 *     For who takes the lease the second look makes the first one needless.
 *   - A guarded transaction is two steps: it has the lock, it ends. What it does between is seen by
 *     nobody before its COMMIT.
 *   - Lost messages: the answer of an acquire, a renewal or a release may never come.
 *   - Clocks run at one speed: MARGIN (5 %) is for those that don't. Time goes in whole steps, a ttl
 *     is TTL of them; any number of steps of the processes fits into one.
 *   - slot, metadata, lock_delay, hold_at_least and the queue only delay grants.
 *   - Two holders: every property is about a grant and the next, or a pair.
 *
 * What is believed, not shown: that PostgreSQL locks, commits, and keeps what it acknowledged.
 */

#ifndef TTL
#define TTL 2
#endif
#ifndef END_OF_TIME
#define END_OF_TIME 5
#endif
#ifndef GRANTS
#define GRANTS 3
#endif
#ifndef COMMITS
#define COMMITS 2
#endif

byte now = 1;                     /* the server's clock */

/* The lease's row, as committed; and who has it FOR KEY SHARE. */
bool row = false;
byte token = 0;
byte expires = 0;
bool shared[2];

/* The row of the application: a counter, and the token that wrote it last, where that is asked. */
byte counter = 0;
byte fence = 0;

/* What each holder believes: its token, 0 for none, and until when; 0 for no longer. */
byte mine[2];
byte deadline[2];

/* When each sent what it has no answer to; 0 for nothing, or so long ago that it is too late. */
byte asked[2];
byte renewing[2];
bool renewed[2];                  /* the server has run it */

/* What only the properties look at. */
byte granted = 0;                 /* how many grants there were */
byte latest = 0;                  /* the token of the last one */
byte commits = 0;
byte last_writer = 2;

#ifdef APP_CLOCK
#define CLOCK(i) (now + 2 * (i))
#else
#define CLOCK(i) now
#endif

#define NOTHING(i) mine[i] = 0; deadline[i] = 0; renewing[i] = 0; renewed[i] = false
#define TRUSTS(i) (deadline[i] > now)
#define FREE(i) ((!row || expires <= CLOCK(i)) && !shared[0] && !shared[1])
#define OURS(i) (row && token == mine[i])

/* What the broken variants ask for instead, or besides. */
#ifdef NO_RECHECK_ACQUIRE
#define MAY_TAKE(i) (found && !shared[0] && !shared[1])
#else
#define MAY_TAKE(i) FREE(i)
#endif
#ifdef NO_RECHECK_GUARD
#define MAY_GUARD(i) found
#else
#define MAY_GUARD(i) OURS(i)
#endif
#ifdef PURGE_ANY
#define PASSED true
#else
#define PASSED (token < now)
#endif
#if defined(WRITE_ONLY_FENCE)
#define MAY_WRITE(i) (fence <= mine[i])
#elif defined(CLAIM)
#define MAY_WRITE(i) (fence == mine[i])
#elif defined(CHECK_ONLY)
#define MAY_WRITE(i) true
#endif

inline check_trust() {
#ifndef OPERATOR
    assert(!(TRUSTS(0) && TRUSTS(1)));                                        /* TRUST */
#endif
    skip
}

inline write(i) {
#ifndef CLAIM
    assert(mine[i] == latest);                                                /* COMMIT */
#endif
#ifdef SEE_COMMITS
    assert(last_writer != 1 - i);
    last_writer = i;
#endif
#ifdef MAY_WRITE
    fence = mine[i];
#endif
    counter = value + 1;
    commits++;
    assert(counter == commits)                                                /* UPDATES */
}

/* The token of a grant by a clock, given the old one. */
inline make_token(old, clock, result) {
    if
    :: row && old + 1 > clock -> result = old + 1
    :: else -> result = clock
    fi
}

proctype Holder(byte i) {
    byte next, value;
    bool found;
#ifdef EARLY_TOKEN
    byte early;
#endif
end:
    do
    :: granted < GRANTS && commits < COMMITS ->
        /* ACQUIRE: look at our clock, and send it. */
        d_step {
            asked[i] = now;
#ifdef NO_RECHECK_ACQUIRE
            found = FREE(i);
#endif
#ifdef EARLY_TOKEN
            make_token(token, CLOCK(i), early);
#endif
        }
        /* The server runs it. */
        d_step {
            if
            :: MAY_TAKE(i) && granted < GRANTS ->
#ifdef EARLY_TOKEN
                next = early;
#else
                make_token(token, CLOCK(i), next);
#endif
#ifdef SEE_TAKEOVER
                assert(!(row && mine[1 - i] == token));
#endif
                row = true;
                token = next;
                expires = CLOCK(i) + TTL;
                granted++;
                assert(next > latest);                                        /* TOKENS */
                latest = next
            :: else
            fi;
            found = false;
#ifdef EARLY_TOKEN
            early = 0
#endif
        }
        if
        :: d_step {                                          /* the answer is there, at last */
            next != 0 ->
            mine[i] = next;
#ifdef TRUST_FROM_ANSWER
            deadline[i] = now + TTL;
#else
            if
            :: asked[i] != 0 -> deadline[i] = asked[i] + TTL
            :: else
            fi;
#endif
            check_trust()
            }
        :: true                                              /* it was held; or no answer comes */
        fi;
        d_step { next = 0; asked[i] = 0 }
        /* Read, at any time; write what was read, and one more; as often as one likes. */
        do
        :: mine[i] != 0 && commits < COMMITS ->
#ifdef CLAIM
            d_step {
                if
                :: fence <= mine[i] -> fence = mine[i]; value = counter; found = true
                :: else
                fi
            }
            if
            :: found -> found = false
            :: !found -> break                                                /* StaleFence */
            fi;
#else
            value = counter;
#endif
#ifdef MAY_WRITE
#ifdef CHECK_ONLY
            if
            :: TRUSTS(i)
            :: !TRUSTS(i) -> value = 0; break                                 /* LockLost */
            fi;
#endif
            d_step {
                if
                :: MAY_WRITE(i) && commits < COMMITS -> write(i)
                :: else
                fi;
                value = 0
            }
#else
#ifdef NO_RECHECK_GUARD
            found = OURS(i);
#endif
            if
            :: d_step { MAY_GUARD(i) -> shared[i] = true; found = false }     /* GUARD */
            :: d_step { !MAY_GUARD(i) -> value = 0 };                         /* LockLost */
#ifdef SEE_REFUSAL
                assert(false);
#endif
                break
            fi;
            if
            :: d_step { commits < COMMITS -> write(i); shared[i] = false; value = 0 }
            :: d_step { shared[i] = false; value = 0 }       /* rolled back, or ended by the server */
            fi
#endif
        :: break
        od;
        if
        :: d_step {                                                           /* RELEASE */
            if
            :: OURS(i) && expires > CLOCK(i) -> expires = CLOCK(i)
            :: else
            fi;
            NOTHING(i)
            }
        :: d_step { NOTHING(i) }           /* it is lost */
        fi
    od
}

/* RENEW, while there is something to renew: send, run, answer; or no answer that helps. */
proctype Heartbeat(byte i) {
end:
    do
    :: d_step { TRUSTS(i) && renewing[i] == 0 -> renewing[i] = now }
    :: d_step {
        renewing[i] != 0 && !renewed[i] && OURS(i) ->
        renewed[i] = true;
        if
        :: expires < CLOCK(i) + TTL -> expires = CLOCK(i) + TTL
        :: else
        fi
        }
    :: d_step {
        renewed[i] ->
        if
        :: TRUSTS(i) ->
#ifdef SEE_RENEWED
            assert(renewing[i] + TTL <= deadline[i]);
#endif
#ifdef TRUST_FROM_ANSWER
            deadline[i] = now + TTL;
#else
            if
            :: renewing[i] + TTL > deadline[i] -> deadline[i] = renewing[i] + TTL
            :: else
            fi;
#endif
            check_trust()
        :: else
        fi;
        renewing[i] = 0; renewed[i] = false
        }
    :: d_step { renewing[i] != 0 -> renewing[i] = 0; renewed[i] = false }
    od
}

/* PURGE: rows that have been idle for a moment, and whose tokens the clock has passed. */
proctype Purge() {
end:
    do
    :: d_step {
        row && !shared[0] && !shared[1] && expires < now && PASSED ->
        row = false; token = 0; expires = 0
        }
    od
}

#ifdef OPERATOR
/* FORCE_RELEASE: waits for guards, passes the token, ends the lease. */
proctype Operator() {
    byte next;
end:
    d_step {
        row && !shared[0] && !shared[1] ->
        make_token(token, now, next);
        token = next;
        if
        :: expires > now -> expires = now
        :: else
        fi;
        assert(next > latest);
        latest = next;
        next = 0
    }
}
#endif

inline pass(what) {
    if
    :: what <= now -> what = 0
    :: else
    fi
}

inline forget(what) {
    if
    :: what + TTL <= now -> what = 0
    :: else
    fi
}

proctype Time() {
end:
    do
    :: d_step {
        now < END_OF_TIME ->
        now++;
        pass(deadline[0]); pass(deadline[1]);
#ifndef TRUST_FROM_ANSWER
        forget(asked[0]); forget(asked[1])
#endif
        }
    od
}

init {
    atomic {
        run Holder(0); run Holder(1); run Heartbeat(0); run Heartbeat(1); run Purge(); run Time();
#ifdef OPERATOR
        run Operator()
#endif
    }
    timeout;
    assert(!shared[0] && !shared[1])                                          /* AT REST */
}
