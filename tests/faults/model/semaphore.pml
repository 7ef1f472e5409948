/*
 * The semaphore, django_dblock.coordination.semaphore, for Spin: three holders, one of which wants
 * two units, that may stop anywhere for any time; permits that end at any time; an operator.
 *
 *     spin -a semaphore.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan
 *
 * What a run shows, in every order of the steps within the bounds below:
 *
 *   LIMIT   the guarded transactions that are open at one moment have PERMITS units at most;
 *   COMMIT  a guarded transaction commits only under the latest token of each of its slots;
 *   ALL     a holder is granted all its units in one step, or none;
 *   LIVE    a permit that has not ended is granted to nobody else;
 *   DOUBLE  a late release ends nobody else's permit;
 *   TURN    with -DFAIR: who is granted leaves room for all that stand in the queue before it;
 *   and no run gets stuck, or ends with a slot locked.
 *
 * The steps, by the names in django_dblock/sql: ACQUIRE_SLOTS, which is its snapshot, the lock of
 * each free slot (FOR UPDATE SKIP LOCKED), and the UPDATE with the COMMIT; GUARD for each slot, one
 * by one; RELEASE or RELEASE_SLOTS; FORCE_RELEASE; TAKE_TICKET, DROP_TICKET.
 *
 * One -D breaks one part of the protocol, and must be refuted (tests/faults/test_model.py):
 *
 *   CHECK_ONLY     no guard: the holder works while it believes in its permit
 *   GUARD_FIRST    the guard of two units asks for the first slot only
 *   LOOK_ONLY      a slot that was free in the snapshot is taken without a look when it is locked
 *   SOME           the slots that could be locked are granted, be they enough or not
 *   RELEASE_ANY    the release does not ask for the token
 *   COUNTER        no slots: a count of free units, which an expiry and a release add to
 *   FAIR, NO_TURN  who waits looks at the free slots only, not at who came before
 *   FAIR, HEADS    it counts who came before, not their units
 *
 * SEE_BOTH, SEE_SKIP, SEE_TAKEOVER, SEE_REFUSAL, SEE_LATE say that something can't happen, which
 * can.
 *
 * What is left out, and why nothing is lost by it:
 *
 *   - Time. A permit may end at any moment; a renewal only delays that.
 *   - That a guard asks for the expiry: here it asks for the token alone, as in lease.pml.
 *   - Making rows: they are made free, and taken by the next try.
 *   - A purge: a row that is made again has a greater token, as lease.pml shows.
 *   - LOWERED: one of the holders asks with permits=1, as during a deployment that lowers the limit.
 */

#ifndef PERMITS
#define PERMITS 2
#endif
#ifndef GRANTS
#define GRANTS 3
#endif
#define HOLDERS 3
#define NOBODY 9

#define UNITS(i) (1 + ((i) == 0))
#ifdef LOWERED
#define MOST(i) (PERMITS - ((i) == 2))
#else
#define MOST(i) PERMITS
#endif

/* The slots, as committed; who has each FOR UPDATE; how many guards have it FOR KEY SHARE. */
byte token[PERMITS];
bool live[PERMITS];
byte locked[PERMITS] = NOBODY;
byte shared[PERMITS];

/* The queue. */
byte tickets = 0;
byte ticket[HOLDERS];             /* 0: none */

/* What only the properties look at. */
byte grants = 0;
byte working = 0;                 /* units of guarded transactions that are open */

#ifdef OPERATOR
#define FORCED true
#else
#define FORCED false
#endif

#ifdef COUNTER

/* The design of the field: a number of free units. */
byte free = PERMITS;
bool running[HOLDERS];            /* granted, and not expired */

proctype Holder(byte me) {
end:
    do
    :: d_step { free >= UNITS(me) && grants < GRANTS ->
        free = free - UNITS(me); grants++; running[me] = true; working = working + UNITS(me);
        assert(working <= PERMITS) }                                          /* LIMIT */
        d_step {                                                              /* release */
            free = free + UNITS(me);
            if
            :: running[me] -> running[me] = false; working = working - UNITS(me)
            :: else
            fi
        }
    od
}

proctype Time() {
    byte i;
end:
    do
    :: d_step { running[0] -> running[0] = false; free = free + UNITS(0);
        working = working - UNITS(0) }
    :: d_step { running[1] -> running[1] = false; free = free + UNITS(1);
        working = working - UNITS(1) }
    od
}

#else

#define FREE(s) (!live[s] && shared[s] == 0 && locked[s] == NOBODY)
#ifdef LOOK_ONLY
#define LOCKABLE(s) (shared[s] == 0 && locked[s] == NOBODY)
#else
#define LOCKABLE(s) FREE(s)
#endif
#if defined(SOME)
#define ENOUGH (got > 0)
#else
#define ENOUGH (got == UNITS(me))
#endif
#ifdef RELEASE_ANY
#define OURS(s) (mine[s] != 0)
#else
#define OURS(s) (mine[s] != 0 && token[s] == mine[s])
#endif
#ifdef FAIR
#define MAY_ASK (ticket[me] != 0 || tickets < 3)
#else
#define MAY_ASK true
#endif
#ifdef HEADS
#define WEIGHT(i) 1
#else
#define WEIGHT(i) UNITS(i)
#endif

/* The units of who stands before us in the queue. */
inline count_before(real) {
    before = 0;
    for (j : 0 .. HOLDERS - 1) {
        if
        :: j != me && ticket[j] != 0 && (ticket[me] == 0 || ticket[j] < ticket[me]) ->
            before = before + (real -> UNITS(j) : WEIGHT(j))
        :: else
        fi
    }
    j = 0
}

inline count_live() {
    taken = 0;
    for (s : 0 .. PERMITS - 1) {
        if
        :: s < MOST(me) && live[s] -> taken++
        :: else
        fi
    }
    s = 0
}

proctype Holder(byte me) {
    byte s, j, got, before, taken;
    bool seen[PERMITS];
    byte mine[PERMITS];
    bool guarded[PERMITS];
    bool may;
end:
    do
    :: grants < GRANTS && UNITS(me) <= MOST(me) && MAY_ASK ->
#ifdef FAIR
        if
        :: d_step { ticket[me] == 0 && tickets < 3 -> tickets++; ticket[me] = tickets }
        :: ticket[me] != 0 || tickets == 3
        fi;
#endif
        /* ACQUIRE_SLOTS: what it sees. */
        d_step {
            count_live();
            may = MOST(me) - taken >= UNITS(me);
#ifdef FAIR
#if !defined(NO_TURN)
            count_before(false);
            may = may && UNITS(me) + before + taken <= MOST(me);
#endif
#endif
            for (s : 0 .. PERMITS - 1) {
                seen[s] = may && s < MOST(me) && !live[s]
            }
            s = 0; before = 0; taken = 0; may = false
        }
        /* It locks what was free, one by one, as many as it needs; and looks at each again. */
        do
        :: d_step {
            s < PERMITS ->
            if
            :: seen[s] && got < UNITS(me) && LOCKABLE(s) -> locked[s] = me; got++
            :: else ->
#ifdef SEE_SKIP
                assert(!(seen[s] && got < UNITS(me)));
#endif
                skip
            fi;
            seen[s] = false; s++ }
        :: s == PERMITS -> break
        od;
        s = 0;
        /* All of them, or none; COMMIT. */
        d_step {
            if
            :: ENOUGH && grants < GRANTS ->
                assert(got == UNITS(me));                                     /* ALL */
                grants++;
#ifdef FAIR
                count_before(true);
                count_live();
                assert(UNITS(me) + before + taken <= MOST(me));               /* TURN */
                before = 0; taken = 0; ticket[me] = 0;
#endif
                for (s : 0 .. PERMITS - 1) {
                    if
                    :: locked[s] == me ->
                        assert(!live[s]);                                     /* LIVE */
#ifdef SEE_TAKEOVER
                        assert(token[s] == 0);
#endif
                        token[s] = token[s] + 1; live[s] = true; mine[s] = token[s]
                    :: else
                    fi
                }
            :: else
            fi;
            got = 0;
            for (s : 0 .. PERMITS - 1) {
                if
                :: locked[s] == me -> locked[s] = NOBODY
                :: else
                fi
            }
            s = 0
        }
        if
        :: d_step { true -> ticket[me] = 0; mine[0] = 0; mine[1] = 0 }  /* no answer; it gives up */
        :: true
        fi;
        /* It works, as often as it likes. */
        do
        :: mine[0] + mine[1] != 0 ->
            may = true;
#ifndef CHECK_ONLY
            do
            :: d_step { s < PERMITS && mine[s] == 0 -> s++ }
            :: d_step { s < PERMITS && mine[s] != 0 && locked[s] == NOBODY && token[s] == mine[s] ->
                shared[s] = shared[s] + 1; guarded[s] = true; s++;            /* GUARD */
#ifdef GUARD_FIRST
                s = PERMITS
#endif
                }
            :: d_step { s < PERMITS && mine[s] != 0 && token[s] != mine[s] ->
                may = false; s = PERMITS;                                     /* LockLost */
#ifdef SEE_REFUSAL
                assert(false)
#endif
                }
            :: s == PERMITS -> break
            od;
            s = 0;
#endif
            if
            :: d_step { may -> working = working + UNITS(me);
                assert(working <= PERMITS);                                   /* LIMIT */
#ifdef SEE_BOTH
                assert(working == UNITS(me))
#endif
                }
                d_step {                                                      /* COMMIT */
                    working = working - UNITS(me);
                    for (s : 0 .. PERMITS - 1) {
                        assert(mine[s] == 0 || mine[s] == token[s])           /* COMMIT */
                    }
                    s = 0
                }
            :: !may
            fi;
            d_step {
                for (s : 0 .. PERMITS - 1) {
                    if
                    :: guarded[s] -> shared[s] = shared[s] - 1; guarded[s] = false
                    :: else
                    fi
                }
                s = 0;
                if
                :: !may -> mine[0] = 0; mine[1] = 0
                :: else
                fi;
                may = false
            }
        :: break
        od;
        skip;
        if
        :: d_step { locked[0] == NOBODY && locked[1] == NOBODY ->             /* RELEASE_SLOTS */
            for (s : 0 .. PERMITS - 1) {
                if
                :: OURS(s) ->
                    assert(token[s] == mine[s]);                              /* DOUBLE */
                    live[s] = false
                :: else ->
#ifdef SEE_LATE
                    assert(mine[s] == 0);
#endif
                    skip
                fi
            }
            s = 0; mine[0] = 0; mine[1] = 0 }
        :: d_step { true -> mine[0] = 0; mine[1] = 0 }                        /* it is lost */
        fi
    od
}

/* Permits end, whenever; an operator ends one, too. */
proctype Time() {
end:
    do
    :: d_step { live[0] -> live[0] = false }
    :: d_step { live[1] -> live[1] = false }
    :: d_step { FORCED && locked[0] == NOBODY && shared[0] == 0 && token[0] < GRANTS ->
        token[0] = token[0] + 1; live[0] = false }                            /* FORCE_RELEASE */
    od
}

#endif

init {
    atomic { run Holder(0); run Holder(1); run Holder(2); run Time() }
    timeout;
#ifndef COUNTER
    assert(locked[0] == NOBODY && locked[1] == NOBODY && working == 0)        /* AT REST */
#endif
}
