/*
 * The requests of django_dblock.idempotency, for Spin: clients that send one request again and
 * again, servers that may die at any step, and a database that commits or rolls back.
 *
 *     spin -a -DLEASE idempotency.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan
 *
 * What a run shows, in every order of the steps within the bounds below:
 *
 *   ONCE    the effect is committed at most once;
 *   SAME    every client that gets an answer gets the same one, and the effect is there;
 *   and no run gets stuck, or ends with the lock held: whatever died, a retry gets an answer.
 *
 * Without a -D it is atomic mode; -DLEASE is lease mode, where a claim may end at any time, also
 * under a run that is alive, and the effect is written with complete() in its transaction.
 *
 * One -D more breaks one part, and must be refuted (tests/faults/test_model.py):
 *
 *   RECORD_AFTER_COMMIT   the answer is recorded in a transaction after that of the effect
 *   RECORD_BEFORE         it is recorded before
 *   NO_LOCK               check, then act: no lock, and the row is overwritten
 *   LOCK_AFTER_READ       the row is read before the lock is had, and overwritten
 *   LEASE, NO_TOKEN       the completing UPDATE does not ask for its claim's token
 *   LEASE, CLAIM_ANYWAY   a claim is taken over without looking at its state again
 *   LEASE, CLAIM_ANSWERED it is taken over if the token is still the same, be it answered
 *
 * SEE_REPLAY, SEE_CRASH, SEE_TAKEOVER say that something can't happen, which can.
 *
 * What is left out, and why nothing is lost by it:
 *
 *   - One (scope, key) and one fingerprint: others are other rows, or refused before they run.
 *   - A transaction's writes are seen by nobody before its COMMIT, so they are one step, there; a
 *     crash before it is one that has written nothing.
 *   - Lost answers: a client that gets none is one whose server died after COMMIT.
 *   - Retention: within it. What comes after it is a new request, by promise.
 *   - What the view does outside the database: that is at least once, as the docs say.
 */

#ifndef CRASHES
#define CRASHES 3
#endif

/* The row of the request, as committed. */
byte token = 0;                   /* 0: there is no row */
bool answered = false;
byte answer = 0;

/* The advisory lock on (scope, key): who has it; and the row's, while a claim is completed. */
byte lock = 0;

byte charges = 0;                 /* the effect */
byte runs = 0;                    /* each run would answer with its own number */
byte crashes = 0;
bool claimable = true;                 /* whether the claim has ended, or there is none */

/* What the first client was told, whoever that is. */
byte told = 0;

inline tell(what) {
    assert(charges == 1);                                                     /* SAME */
    assert(told == 0 || told == what);
#ifdef SEE_REPLAY
    assert(told == 0);
#endif
    told = what
}

/* The server that serves this client dies: its transaction is rolled back, and its lock is free. */
inline die() {
    crashes++;
    if
    :: lock == me -> lock = 0
    :: else
    fi;
#ifdef SEE_CRASH
    assert(charges == 0);
#endif
    run_number = 0; mine = 0; seen = 0
}

#if defined(NO_LOCK)
#define TAKE skip
#define GIVE skip
#else
#define TAKE lock = me
#define GIVE lock = 0
#endif

#ifndef LEASE

proctype Client(byte me) {
    byte run_number, mine, seen;
retry:
    /* Lock, if it is free, then read: a statement each, in one message. */
#if defined(LOCK_AFTER_READ)
    seen = answer;
    if
    :: atomic { lock == 0 -> TAKE }
    fi;
#elif defined(NO_LOCK)
    seen = answer;
#else
    if
    :: atomic { lock == 0 -> TAKE }       /* else 409, and the client asks again */
    fi;
    seen = answer;
#endif
    if
    :: d_step { seen != 0 -> GIVE; tell(seen); seen = 0 }                     /* the replay */
       goto out
    :: seen == 0 && charges < 3
    fi;
    /* The view runs. */
    d_step { runs++; run_number = runs }
#ifdef RECORD_BEFORE
    d_step { answer = run_number }
    if
    :: d_step { crashes < CRASHES -> die() }
       goto retry
    :: true
    fi;
#endif
    if
    :: d_step { crashes < CRASHES -> die() }                                  /* it dies in it */
       goto retry
    :: d_step {                                                               /* COMMIT */
        charges++;
        assert(charges <= 1);                                                 /* ONCE */
#if !defined(RECORD_AFTER_COMMIT) && !defined(RECORD_BEFORE)
        answer = run_number
#endif
        }
    fi;
#ifdef RECORD_AFTER_COMMIT
    if
    :: d_step { crashes < CRASHES -> die() }
       goto retry
    :: answer = run_number
    fi;
#endif
    /* The server frees the lock when what was committed can be seen. Here it may die, too: its client
       gets no answer, and asks again. */
    if
    :: d_step { crashes < CRASHES -> die() }
       goto retry
    :: d_step { GIVE; tell(run_number); run_number = 0 }
    fi;
out:
    skip
}

#else

proctype Client(byte me) {
    byte run_number, mine, seen;
retry:
    /* Lock, read, claim, COMMIT: one transaction, under the lock, which ends with it. */
    if
    :: atomic { lock == 0 -> TAKE }
    fi;
    seen = token;
    if
    :: d_step { answered -> GIVE; seen = 0; tell(answer) }                        /* the replay */
       goto out
    :: d_step { !answered && !claimable -> GIVE; seen = 0 }                            /* 409 */
       goto retry
    :: !answered && claimable
    fi;
    /* What it found may be over by now: completing asks for no advisory lock. */
    if
    :: d_step { crashes < CRASHES -> die() }
       goto retry
    :: d_step {
        if
#ifdef CLAIM_ANYWAY
        :: true ->
#elif defined(CLAIM_ANSWERED)
        :: token == seen ->
#else
        :: token == seen && !answered ->
#endif
#ifdef SEE_TAKEOVER
            assert(token == 0);
#endif
            token++; mine = token; claimable = false; answered = false; answer = 0;
            runs++; run_number = runs
        :: else -> mine = 0
        fi;
        seen = 0; GIVE
        }
    fi;
    if
    :: mine == 0 -> goto retry                                                /* 409 */
    :: mine != 0
    fi;
    /* The view runs; its effect and the completing UPDATE are one transaction. */
    if
    :: d_step { crashes < CRASHES -> die() }
       goto retry
    :: d_step {
#ifdef NO_TOKEN
        true ->
#else
        token == mine && !answered ->
#endif
        charges++;
        assert(charges <= 1);                                                 /* ONCE */
        answer = run_number; answered = true
        }
    :: d_step { token != mine || answered -> mine = 0; run_number = 0 }           /* lost: rolled back */
       goto retry
    fi;
    if
    :: d_step { crashes < CRASHES -> die() }
       goto retry
    :: d_step { tell(run_number); run_number = 0; mine = 0 }
    fi;
out:
    skip
}

/* The time of a claim is over, whether its run is dead, or only slow. */
proctype Time() {
end:
    do
    :: d_step { !claimable && !answered && token < 4 -> claimable = true }
    od
}

#endif

init {
    atomic {
        run Client(1); run Client(2); run Client(3);
#ifdef LEASE
        run Time()
#endif
    }
    timeout;
    assert(lock == 0)                                                         /* AT REST */
}
