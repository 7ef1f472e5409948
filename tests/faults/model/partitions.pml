/*
 * Partitions, django_dblock.coordination.partitions, for Spin: workers that join, leave, die, freeze
 * and go on; what nobody renews ends at some moment, each row at its own.
 *
 *     spin -a partitions.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan
 *
 * What a run shows, in every order of the steps within the bounds below:
 *
 *   COMMIT  a guarded transaction commits only while its worker has the latest grant of the partition,
 *           and two of them are never open for one partition;
 *   LIVE    a partition whose lease has not ended is taken from nobody;
 *   BACK    when each live worker has balanced ROUNDS times since the last worker came, went or
 *           ended, and met nothing in use, each partition has an owner that is alive;
 *   FAIR    and the shares of the workers differ by one at most;
 *   and no run gets stuck.
 *
 * The steps of a balance, by the names in django_dblock: the worker's registration (ACQUIRE_SLOTS),
 * if it was lost, after RELEASE_SLOTS of all it has; WORKERS; then RELEASE_SLOTS of what is over
 * the share, or ACQUIRE_SLOTS of what is missing, with at_least=1. Between them: GUARD and COMMIT.
 *
 * -DWORK has the loops of two workers besides, for COMMIT; BACK and FAIR are looked at without it.
 *
 * One -D breaks one part of the protocol, and must be refuted (tests/faults/test_model.py):
 *
 *   CHECK_ONLY   no guard: a worker works on what it believes it owns
 *   NO_LEASE     no leases: a worker works on what falls to its place in the list of workers
 *   TAKE_ANY     a worker takes rows whose leases have not ended
 *   ROUND_UP     each worker's share is count / workers, rounded up
 *   ROUND_DOWN   it is rounded down
 *   KEEP         a worker gives nothing up
 *   FOREVER      what a dead worker had does not end
 *
 * SEE_MOVE, SEE_REFUSAL, SEE_TAKEOVER, SEE_BALANCED say that something can't happen, which can.
 *
 * What is left out, and why nothing is lost by it:
 *
 *   - The statements that take several rows are one step: what another has locked is passed by,
 *     and is that other's when it commits, because it takes what it has locked.
 *   - A worker's slot is its number: that two never have one is the semaphore's promise.
 *   - The heartbeat: what a live worker has does not end, what others have may end at any moment.
 *     That a lease is lost is known at the next balance, as the last renewal has told it.
 *   - Tokens: the row's latest owner stands for it; late threads are in leadership.pml.
 */

#ifndef WORKERS
#define WORKERS 3
#endif
#ifndef COUNT
#define COUNT 4
#endif
#ifndef EVENTS
#define EVENTS 1
#endif
#ifndef ROUNDS
#define ROUNDS 3
#endif
#define NOBODY 9

/* The rows of the workers' registrations and of the partitions. */
bool registered[WORKERS];
bool live[COUNT];
byte owner[COUNT] = NOBODY;       /* the latest grant */
byte shared[COUNT];               /* guards: FOR KEY SHARE */

/* The workers. */
#define AWAY 0                    /* not yet in its block, or out of it */
#define RUNS 1
#define FROZEN 2
#define DEAD 3
byte state[WORKERS];
bool balanced[WORKERS];           /* in this round */

/* What only the properties look at. */
byte events = 0;
byte rounds = 0;                  /* full ones since the last event */
byte working[COUNT];

#define RUNNING(w) (state[w] == RUNS)
#define IN_USE (shared[0] + shared[1] + shared[2] + shared[3] != 0)

typedef Beliefs { bool has[COUNT] }
Beliefs believes[WORKERS];

inline begin_again() {
    rounds = 0
}

#ifdef TAKE_ANY
#define FREE(p) (shared[p] == 0)
#else
#define FREE(p) (!live[p] && shared[p] == 0)
#endif

proctype Worker(byte me) {
    byte p, w, number, place, target, had;
end:
    do
    :: RUNNING(me) && !balanced[me] ->                                        /* balance() */
        d_step {
            for (p : 0 .. COUNT - 1) {
                believes[me].has[p] = believes[me].has[p] && owner[p] == me && live[p]
            }
            p = 0;
            if
            :: !registered[me] ->
                for (p : 0 .. COUNT - 1) {
                    if
                    :: believes[me].has[p] -> believes[me].has[p] = false; live[p] = false
                    :: else
                    fi
                }
                p = 0;
                registered[me] = true; begin_again()
            :: else
            fi
        }
end_looks:
        if
        :: RUNNING(me)
        fi;
        d_step {                                                              /* WORKERS */
            number = 0; place = 0; had = 0;
            for (w : 0 .. WORKERS - 1) {
                if
                :: registered[w] -> number++;
                    place = place + (w < me)
                :: else
                fi
            }
            w = 0;
            for (p : 0 .. COUNT - 1) { had = had + believes[me].has[p] }
            p = 0;
            if
            :: !registered[me] -> target = 0
            :: else ->
#if defined(ROUND_UP)
                target = (COUNT + number - 1) / number
#elif defined(ROUND_DOWN)
                target = COUNT / number
#else
                target = COUNT / number + (place < COUNT % number)
#endif
            fi;
            number = 0; place = 0
        }
end_moves:
        if
        :: RUNNING(me)
        fi;
        d_step {
            for (w : 1 .. COUNT) {
                p = COUNT - w;
                if
                :: had > target && believes[me].has[p] && shared[p] == 0 ->                           /* RELEASE_SLOTS */
#ifndef KEEP
                    had--; believes[me].has[p] = false;
                    if
                    :: owner[p] == me -> live[p] = false
                    :: else
                    fi;
#ifdef SEE_MOVE
                    assert(false);
#endif
#endif
                    skip
                :: else
                fi
            }
            for (p : 0 .. COUNT - 1) {
                if
                :: had < target && FREE(p) && !believes[me].has[p] ->               /* ACQUIRE_SLOTS */
                    assert(!live[p]);                                         /* LIVE */
#ifdef SEE_TAKEOVER
                    assert(owner[p] == NOBODY || owner[p] == me || RUNNING(owner[p]));
#endif
                    had++; believes[me].has[p] = true; owner[p] = me; live[p] = true
                :: else
                fi
            }
            p = 0; w = 0;
            if
            :: IN_USE -> begin_again()
            :: else
            fi;
            had = 0; target = 0;
            balanced[me] = true
        }
    od
}

#if defined(NO_LEASE) || defined(CHECK_ONLY)
#define NOT_ASKED true
#else
#define NOT_ASKED false
#endif

inline end_work() {
    working[p] = working[p] - 1; held = false;
    if
    :: NOT_ASKED
    :: else -> shared[p] = shared[p] - 1
    fi
}

/* The loop of each worker, over one partition: what is promised of each is promised of one. */
proctype Loop(byte me) {
    byte p;
    bool held;
end:
    do
    :: RUNNING(me) ->
        if
#ifdef NO_LEASE
        :: d_step { p < COUNT && registered[me] && p % 2 == (me > 0 && registered[0]) -> held = true }
#elif defined(CHECK_ONLY)
        :: d_step { believes[me].has[p] -> held = true }
#else
        :: d_step { believes[me].has[p] && owner[p] == me -> shared[p] = shared[p] + 1; held = true }
        :: d_step { believes[me].has[p] && owner[p] != me -> believes[me].has[p] = false; /* LockLost */
#ifdef SEE_REFUSAL
            assert(false)
#endif
            }
#endif
        :: true
        fi;
        if
        :: held ->
            d_step { working[p] = working[p] + 1;
                assert(working[p] == 1) }                                     /* COMMIT */
            if
            :: d_step { RUNNING(me) -> end_work();                            /* COMMIT */
                assert(owner[p] == me || NOT_ASKED) }
            :: d_step { !RUNNING(me) -> end_work() }         /* the server rolls it back */
            fi
        :: else
        fi
    od
}

/* Who comes, goes, dies, freezes, goes on. */
proctype World() {
    byte w, p;
end:
    do
    :: events < EVENTS ->
        if
        :: w = 0
        :: w = 1
        :: w = 2
        fi;
        if
        :: d_step { state[w] == AWAY -> state[w] = RUNS; balanced[w] = false; events++;
            begin_again() }
        :: d_step { state[w] == RUNS -> state[w] = DEAD; events++; begin_again() }
        :: d_step { state[w] == RUNS -> state[w] = FROZEN; events++; begin_again() }
        :: d_step { state[w] == FROZEN -> state[w] = RUNS; balanced[w] = false; events++;
            begin_again() }
        :: true
        fi;
        w = 0
    od
}

/* What nobody renews ends, at some moment, each row at its own. A round ends after that. */
#define GONE(w) (state[w] == DEAD || state[w] == FROZEN)
#ifdef FOREVER
#define ENDS(p) false
#else
#define ENDS(p) (live[p] && owner[p] != NOBODY && GONE(owner[p]))
#endif

#define ROUND_OVER(w) ((balanced[w] || !RUNNING(w)) && !(GONE(w) && registered[w]))
#define ALL_ENDED (!ENDS(0) && !ENDS(1) && !ENDS(2) && !ENDS(3))
#define NO_USE (working[0] + working[1] + working[2] + working[3] == 0)
#define ANY (RUNNING(0) || RUNNING(1) || RUNNING(2))

inline expire(p) {
    live[p] = false; begin_again()
}

proctype Time() {
    byte w, p, had, least, most, number;
end:
    do
    :: d_step { GONE(0) && registered[0] -> registered[0] = false; begin_again() }
    :: d_step { GONE(1) && registered[1] -> registered[1] = false; begin_again() }
    :: d_step { GONE(2) && registered[2] -> registered[2] = false; begin_again() }
    :: d_step { ENDS(0) -> expire(0) }
    :: d_step { ENDS(1) -> expire(1) }
    :: d_step { ENDS(2) -> expire(2) }
    :: d_step { ENDS(3) -> expire(3) }
    :: d_step {
        ROUND_OVER(0) && ROUND_OVER(1) && ROUND_OVER(2) && ALL_ENDED && NO_USE && ANY && rounds < ROUNDS ->
        rounds++;
        for (w : 0 .. WORKERS - 1) { balanced[w] = false }
        if
        :: rounds == ROUNDS ->
#ifdef SEE_BALANCED
            assert(events < EVENTS);
#endif
            least = COUNT; most = 0;
            for (w : 0 .. WORKERS - 1) {
                if
                :: RUNNING(w) ->
                    had = 0;
                    for (p : 0 .. COUNT - 1) {
                        had = had + (live[p] && owner[p] == w)
                    }
                    number = number + had;
                    if
                    :: had < least -> least = had
                    :: else
                    fi;
                    if
                    :: had > most -> most = had
                    :: else
                    fi
                :: else
                fi
            }
#ifndef WORK
            assert(number == COUNT);                                          /* BACK */
            assert(most - least <= 1);                                        /* FAIR */
#endif
            skip
        :: else
        fi;
        w = 0; p = 0; had = 0; least = 0; most = 0; number = 0 }
    od
}

init {
    byte w;
    atomic {
        for (w : 0 .. WORKERS - 1) { state[w] = (w < 2 -> RUNS : AWAY) }
        w = 0;
        for (w : 0 .. WORKERS - 1) { run Worker(w) }
#ifdef WORK
        run Loop(0);
        run Loop(1);
#endif
        run World();
        run Time()
    }
    timeout;
    assert(rounds == ROUNDS || !ANY)
}
