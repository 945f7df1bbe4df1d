/*
 * The hold of one guest: director, agent, watchdog, storage, the network between them, and what
 * may kill, stop or disturb them. Checked with spin by tests/integration/director/.
 *
 * What stands for what:
 *   Director   director/capture.py, barrier.py and proof.py; its calls guests/channel.py
 *   net, reply TLS connections. Requests wait in `net` for as long as they like and in any order,
 *              are lost or come twice; a call may be given up at any moment, its answer with it
 *   Agent      atoll_agent/server.py, where each request has a thread of its own, and keeper.py,
 *              whose lock makes each step one; the stages are arming.py, hold.py and guard.py
 *   Watchdog   atoll_agent/watchdog.py; what it does to file systems is freezing.py
 *   Storage    snapshot_group of storage/interface.py
 *   Systemd    starts the agent again; __main__.py thaws leftovers before anything else
 *   Killer     kill -9, SIGSTOP and SIGCONT, somebody's fsfreeze -u, a lost database session
 *   Clock      CLOCK_BOOTTIME as atoll_agent/clock.py reads it
 *
 * What must hold, whatever happens; each is an assertion below, or what spin looks for by itself:
 *   (a) what is claimed to have been held was, at the snapshot's instant
 *   (b) no guest stays frozen beyond its budget or its lease; and whatever freezes thaws (LIVENESS)
 *   (c) a request of one hold never ends another's
 *   (d) nobody waits for ever, but where a label `end` says that he rests
 *   (e) what an agent was asked to thaw does not freeze again
 *
 * What is left out, and why that is fair: docs/adr/0021-the-hold-is-model-checked.md.
 *
 * -D options: FAULTS, how many, and KINDS, which; DUPLICATES and LATE requests; UNTIMED, without the
 * clock; LIVENESS, for the claim instead of the assertions. BUG_… leaves a rule out; then a promise
 * must break. REPLAY is for simulation: what comes from outside waits until the guest has nothing
 * more to do by itself, and each step that a harness must do or see on the real code is printed as
 * a line that begins with @.
 */

#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef KINDS
#define KINDS 255
#endif
#define K_DIRECTOR 1	/* killed; the next start thaws, or nobody does */
#define K_AGENT 2	/* killed; starts again by itself */
#define K_WATCHDOG 4	/* killed */
#define K_STOP 8	/* the agent is stopped and goes on at some time */
#define K_THAW 16	/* somebody else thaws the file systems */
#define K_SESSION 32	/* the application's session ends, and its locks with it */
#define K_SLOW 64	/* the agent loses its patience with a watchdog or a disk */
#define K_HANG 128	/* the watchdog is stopped, and goes on at some time or never */
#ifndef DUPLICATES
#define DUPLICATES 0	/* how many of the director's requests the network delivers twice */
#endif
#ifndef LATE
#define LATE 0		/* how many requests of another hold arrive, whenever they like */
#endif
#define OURS 1		/* the hold that the director is at */
#define OTHER 2		/* that of another run, of a dead director, or of an attempt before */

#ifdef UNTIMED		/* lease and budget may end at any moment, so no clock is needed for what is said */
#define LEASE 0
#define BUDGET 0
#else
#define LEASE 2		/* ticks */
#define BUDGET 1
#endif
#define TICK 1		/* how late one may be who watches a clock or a process */

mtype:call = { NONE, PREPARE, FREEZE, THAW };
mtype:guest = { IDLE, FREEZING, HELD, THAWING };
mtype:stage = { REST, BEGIN, BEGUN, HOLD, AWAIT, UNDO, FINISH };
mtype:watch = { OFF, ARMED, STARTED, ICING, ICED, FROZEN, JOINING, ENDING };
mtype:session = { CLOSED, OPEN, LOCKED, LOST };
mtype:past = { UNKNOWN, UNBROKEN, BROKEN };
mtype:storage = { NOTHING, ASKED, TAKEN, DONE, REFUSED };

/* ---- the guest as it truly is ---- */

bool frozen;			/* its file systems */
byte frozen_for;		/* ghost: the hold that froze them last */
byte number;			/* of the last freeze; a hold's own is the `frozen_at` of its answers */
byte age;			/* ghost: ticks since they froze, anew from the start of the lease,
				   without those while nobody who could thaw was left */
bool leased;			/* ghost: the lease has started */
mtype:session session = CLOSED;	/* the application's, and what it holds */

/* ---- the memory of the agent's process ---- */

bool up = true;
bool stopped;
mtype:guest state = IDLE;
byte whose;			/* whose hold; 0 when idle */
mtype:stage stage = REST;
bool cancelled;
bool app;			/* the application was held */
mtype:call job = NONE;		/* what is answered when the stages are through */
byte job_hold;			/* differs from `whose` only by a bug */
bit job_try;
byte armed;			/* for which hold; 0 when not */
bit w;				/* the watchdog of what is armed or held */
bool again[2];			/* repeated freezes, by try, that wait for the first one's outcome */
bool waits[3];			/* thaws that wait for their hold to settle: ours by try, another's */
typedef Memory { mtype:past past; byte number; bool over }
Memory memory[3];

/* ---- watchdogs: the agent's, and one that outlived the agent before ---- */

typedef Dog {
	mtype:watch at;
	bool dead;		/* killed, and the agent has not taken note */
	bool hung;		/* stopped */
	bool orphan;		/* the agent is gone and the pipe closed */
	bool begin, freeze, thaw;	/* lines in the pipe to it */
	byte thaw_for;		/* ghost: whose request is behind that line */
	bool said_frozen, said_ended, said_held;	/* lines in the pipe from it */
	bool wrong;		/* the hold is broken */
	byte serves, number, left
}
Dog dog[2];

/* ---- director, network, storage ---- */

bool net_prepare, net_freeze[2], net_thaw[2];	/* our requests under way, by try */
chan reply = [1] of { bool, bool, byte };	/* held, application held, number */
mtype:call want = NONE;		/* the call whose answer the director waits for */
bit want_try;
byte duplicates = DUPLICATES;
byte late_ones = LATE;
mtype:storage storage = NOTHING;
bool inside, inside_app;	/* ghosts: what was true at the snapshot's instant */
byte faults = FAULTS;
bool finished;
bool over[3];			/* ghost: this agent was asked to thaw the hold */

#define able (up && !stopped)
#define alive(x) (dog[x].at != OFF && !dog[x].dead)
#define acts(x) (alive(x) && !dog[x].hung)
#define unheard(x) (dog[x].dead && !dog[x].orphan && !dog[x].said_ended)
#define counting(x) (dog[x].at == STARTED || dog[x].at == ICING || dog[x].at == ICED || dog[x].at == FROZEN)
#ifdef UNTIMED
#define overdue(x) false
#else
#define overdue(x) (counting(x) && dog[x].left <= TICK)
#endif
#define holding(x) (dog[x].at == ARMED || counting(x))
#define all_read(x) (!dog[x].begin && !dog[x].freeze)
#define frosty(x) (acts(x) && (dog[x].at == ICED || dog[x].at == FROZEN) && dog[x].number == number)
#define watched (frosty(0) || frosty(1) || able && unheard(w))

/* ---- when something may come from outside ---- */

#ifdef REPLAY
bool cut;			/* the director's call has lost its connection */
bool kept;			/* the director has a connection that works */
#define dog_busy(x) (acts(x) && (dog[x].begin || dog[x].freeze || dog[x].thaw || dog[x].orphan \
	|| dog[x].at == ICING || dog[x].at == ICED || dog[x].at == JOINING || dog[x].at == ENDING \
	|| (counting(x) && dog[x].left <= TICK)))
#define agent_busy (able && (unheard(w) || (stage != REST && stage != HOLD) \
	|| (stage == HOLD && session == LOST) || (state == HELD && dog[w].said_ended) \
	|| ((waits[0] || waits[1] || waits[2] || again[0] || again[1]) && state != FREEZING)))
#define settled (!dog_busy(0) && !dog_busy(1) && !agent_busy)
bool thinking;			/* the director is about to go on by itself */
#define NEVER 255
byte fuse = NEVER;		/* so many steps go well before anything may go wrong */
#define unlucky (fuse == 0)
#define outside (settled && !cut && !thinking && fuse != NEVER)
#define think(x) thinking = x
bool awaited;			/* the snapshot, by a director who lives */
#define await(x) awaited = x
#define told settled
inline see() {
	printf("@ state %e %d %d %d %d\n", state, frozen, up, stopped, alive(0) + alive(1));
	fuse = (fuse > 0 -> fuse - 1 : 0)
}
#define may_continue settled
#define patient true		/* real time-outs are long */
#define reachable able
#else
#define outside true
#define unlucky true
#define think(x) skip
#define await(x) skip
#define told true
#define see() skip
#define may_continue true
#define patient false
#define reachable true
#endif

inline send(call, try) {
	if
	:: call == PREPARE -> net_prepare = true
	:: call == FREEZE -> net_freeze[try] = true
	:: call == THAW -> net_thaw[try] = true
	:: !patient		/* lost; where it is lost makes no difference */
	fi
}

/* ---- the agent ---- */

inline answer(call, name, try, held, application, freeze_number) {
	if
	:: want == call && name == OURS && want_try == try && empty(reply) ->
		reply!held, application, freeze_number
	:: want != call || name != OURS || want_try != try || full(reply)	/* nobody waits for it */
	fi
}

inline clear(x) {
	dog[x].at = OFF; dog[x].dead = false; dog[x].hung = false; dog[x].orphan = false;
	dog[x].begin = false; dog[x].freeze = false; dog[x].thaw = false; dog[x].thaw_for = 0;
	dog[x].said_frozen = false; dog[x].said_ended = false; dog[x].said_held = false;
	dog[x].wrong = false; dog[x].serves = 0; dog[x].number = 0; dog[x].left = 0
}

inline disarm() {
	if
	:: armed -> armed = 0; clear(w); session = CLOSED
	:: else
	fi
}

inline arm(name) {
	disarm();
	if
	:: dog[0].at == OFF -> w = 0
	:: else -> w = 1
	fi;
	clear(w);
	dog[w].at = ARMED; dog[w].serves = name;
	session = OPEN
}

inline order_thaw(name) {
	dog[w].thaw = true; dog[w].thaw_for = name
}

inline settle(outcome) {
	memory[whose].past = outcome;
	memory[whose].number = dog[w].number;
	clear(w);
	session = CLOSED; app = false;
	state = IDLE; whose = 0; stage = REST; job = NONE; job_hold = 0; job_try = 0; cancelled = false
}

inline handle_prepare(name, try) {
	if
	:: state == IDLE -> arm(name); armed = name; answer(PREPARE, name, try, true, false, 0)
	:: else -> answer(PREPARE, name, try, false, false, 0)
	fi
}

inline handle_freeze(name, try) {
	if
	:: state == HELD && whose == name ->
#ifdef BUG_LEASE_EXTENDED
		dog[w].left = LEASE + TICK;
#endif
		answer(FREEZE, name, try, true, app, dog[w].number)
	:: state == FREEZING && whose == name -> again[try] = (name == OURS)
	:: state == IDLE && !memory[name].over ->
		state = FREEZING; whose = name; stage = BEGIN; cancelled = false;
		memory[name].past = UNKNOWN; memory[name].number = 0;
		job = FREEZE; job_hold = name; job_try = try
	:: else -> answer(FREEZE, name, try, false, false, 0)
	fi
}

inline handle_thaw(name, try) {
	if
	:: (state == FREEZING || state == THAWING) && whose == name ->
		cancelled = (state == FREEZING -> true : cancelled);
		waits[(name == OTHER -> 2 : try)] = true
	:: else ->
		if
#ifdef BUG_THAW_ANY_RUN
		:: state == HELD ->
#else
		:: state == HELD && whose == name ->
#endif
			state = THAWING; stage = FINISH; job = THAW; job_hold = name; job_try = try;
			order_thaw(name)
		:: else ->
			if
			:: armed == name -> disarm()
			:: else
			fi;
			answer(THAW, name, try, memory[name].past == UNBROKEN, false, memory[name].number)
		fi;
#ifdef BUG_THAW_FORGOTTEN
		memory[name].over = memory[name].past == UNKNOWN && whose != name;
#else
		memory[name].over = true;
#endif
		over[name] = true
	fi
}

inline kill_dog(x) {
	dog[x].dead = true; dog[x].left = (dog[x].left > TICK -> TICK : dog[x].left);
	if	/* the kernel finishes a freeze that it began */
	:: dog[x].at == ICING && !frozen ->
		frozen = true; number++; age = 0; leased = false; frozen_for = dog[x].serves
	:: true
	fi;
	if
	:: dog[x].orphan -> clear(x)
	:: else
	fi
}

#define loses_patience (!patient && (KINDS & K_SLOW) && faults > 0)
#define room (dog[0].at == OFF || dog[1].at == OFF || armed)	/* for another watchdog */
#define takes able && outside && room
#define ripe(i, name) (waits[i] && !((state == FREEZING || state == THAWING) && whose == name))

active proctype Agent() {
	mtype:call kind = NONE;
	byte h;
	bit t;
end:	do
	:: atomic {
		if
		:: takes && net_prepare -> net_prepare = false; kind = PREPARE; h = OURS
		:: takes && net_freeze[0] -> net_freeze[0] = false; kind = FREEZE; h = OURS
		:: takes && net_freeze[1] -> net_freeze[1] = false; kind = FREEZE; h = OURS; t = 1
		:: takes && net_thaw[0] -> net_thaw[0] = false; kind = THAW; h = OURS
		:: takes && net_thaw[1] -> net_thaw[1] = false; kind = THAW; h = OURS; t = 1
		:: takes && late_ones && unlucky -> late_ones--; kind = PREPARE; h = OTHER
		:: takes && late_ones && unlucky -> late_ones--; kind = FREEZE; h = OTHER
		:: takes && late_ones && unlucky -> late_ones--; kind = THAW; h = OTHER
		fi;
		see(); printf("@ deliver %e %d %d\n", kind, h, t);
		if
		:: h == OURS && duplicates > 0 -> duplicates--; send(kind, t)
		:: true
		fi;
		if
		:: kind == PREPARE -> handle_prepare(h, t)
		:: kind == FREEZE -> handle_freeze(h, t)
		:: else -> handle_thaw(h, t)
		fi;
		kind = NONE; h = 0; t = 0
	   }
	:: atomic {	/* a thaw that waited: for its freeze to fail or succeed, or for another thaw */
		if
		:: able && ripe(0, OURS) -> waits[0] = false; h = OURS
		:: able && ripe(1, OURS) -> waits[1] = false; h = OURS; t = 1
		:: able && ripe(2, OTHER) -> waits[2] = false; h = OTHER
		fi;
		handle_thaw(h, t);
		h = 0; t = 0
	   }

	:: atomic {	/* a repeated freeze, which waits for the first one no longer than its own budget */
		if
		:: able && again[0] && (!patient || !(state == FREEZING && whose == OURS)) -> again[0] = false
		:: able && again[1] && (!patient || !(state == FREEZING && whose == OURS)) -> again[1] = false; t = 1
		fi;
		if
		:: state == HELD && whose == OURS -> answer(FREEZE, OURS, t, true, app, dog[w].number)
		:: else -> answer(FREEZE, OURS, t, false, false, 0)
		fi;
		t = 0
	   }

	/* freeze */
	:: atomic { able && stage == BEGIN && (dog[0].at == OFF || dog[1].at == OFF || armed) ->
		if	/* Armed.fits */
		:: armed == whose && alive(w) && session == OPEN
		:: else -> arm(whose)
		fi;
		armed = 0; dog[w].begin = true; stage = BEGUN
	   }
	:: atomic { able && stage == BEGUN && dog[w].at == STARTED -> stage = HOLD }
	:: atomic { able && stage == BEGUN && (dog[w].said_ended || dog[w].hung) -> order_thaw(whose); stage = UNDO }
	:: atomic { able && stage == BEGUN && loses_patience && dog[w].at != STARTED ->
		faults--; order_thaw(whose); stage = UNDO
	   }
	:: atomic { able && stage == HOLD && (outside && session == OPEN || session == LOST) ->
		if
		:: session == OPEN -> see(); printf("@ application holds\n"); session = LOCKED; app = true
		:: session == OPEN && unlucky -> see(); printf("@ application refuses\n")
		:: session == LOST
		fi;
		if
		:: cancelled -> order_thaw(whose); stage = UNDO
		:: else -> dog[w].freeze = true; stage = AWAIT
		fi
	   }
	:: atomic { able && stage == AWAIT && dog[w].said_frozen && !dog[w].said_ended ->
		state = HELD; stage = REST;
		answer(FREEZE, job_hold, job_try, true, app, dog[w].number);
		job = NONE; job_hold = 0; job_try = 0
	   }
	:: atomic { able && stage == AWAIT && (dog[w].said_ended || dog[w].hung) -> order_thaw(whose); stage = UNDO }
	:: atomic { able && stage == AWAIT && loses_patience -> faults--; order_thaw(whose); stage = UNDO }
	:: atomic { able && stage == UNDO && dog[w].said_ended ->
		answer(FREEZE, job_hold, job_try, false, false, 0);
		settle(BROKEN)
	   }

	/* thaw, and the end of a hold that broke */
	:: atomic { able && state == HELD && dog[w].said_ended -> state = THAWING; stage = FINISH }
	:: atomic { able && stage == FINISH && dog[w].said_ended ->
		t = dog[w].said_held && !(app && session != LOCKED);
		if
		:: job == THAW -> answer(THAW, job_hold, job_try, t, false, dog[w].number)
		:: else
		fi;
		if
		:: t -> t = 0; settle(UNBROKEN)
		:: else -> settle(BROKEN)
		fi
	   }

	/* guard.py: a watchdog that does not answer is killed, one that died is stood in for */
	:: atomic { able && loses_patience && (stage == UNDO || stage == FINISH) && alive(w) -> faults--; kill_dog(w) }
	:: atomic { able && (stage == UNDO || stage == FINISH) && alive(w) && dog[w].hung -> kill_dog(w) }
	:: atomic { able && dog[w].said_frozen && alive(w) && dog[w].hung && dog[w].left <= TICK -> kill_dog(w) }
#ifndef BUG_DEAF_AGENT
	:: atomic { able && unheard(w) ->
		if
		:: dog[w].at == ICING || dog[w].at == ICED || dog[w].at == FROZEN || dog[w].freeze -> frozen = false
		:: else
		fi;
		dog[w].said_ended = true; dog[w].said_held = false
	   }
#endif
	od
}

/* ---- the watchdog ---- */

inline let_go(why) {
	dog[me].wrong = why || dog[me].wrong;
	if
	:: (why || dog[me].at == ICING) && !dog[me].orphan && session != CLOSED -> session = LOST
	:: else
	fi;
	if
	:: dog[me].at == ICING -> dog[me].at = JOINING
	:: dog[me].at == ICED || dog[me].at == FROZEN ->
		if
		:: frozen -> frozen = false
		:: else -> dog[me].wrong = true
		fi;
		dog[me].at = ENDING
	:: else -> dog[me].at = ENDING
	fi;
	dog[me].begin = false; dog[me].freeze = false; dog[me].thaw = false; dog[me].left = 0
}

proctype Watchdog(bit me) {
end:	do
	:: atomic { acts(me) && dog[me].at == ARMED && dog[me].begin ->
		dog[me].begin = false; dog[me].at = STARTED; dog[me].left = BUDGET + TICK
	   }
	:: atomic { acts(me) && dog[me].at == STARTED && dog[me].freeze ->
		dog[me].freeze = false; dog[me].at = ICING
	   }
	:: atomic { acts(me) && dog[me].at == ICING ->		/* FIFREEZE returns */
		if
		:: frozen -> dog[me].at = STARTED; let_go(true)
		:: else ->
			frozen = true; number++; age = 0; leased = false; frozen_for = dog[me].serves;
			dog[me].number = number; dog[me].at = ICED;
			assert(!over[dog[me].serves] || dog[me].orphan)	/* (e) */
		fi
	   }
	:: atomic { acts(me) && dog[me].at == ICED ->
		dog[me].at = FROZEN; dog[me].said_frozen = true; dog[me].left = LEASE + TICK;
		leased = true; age = 0
	   }
	:: atomic { acts(me) && dog[me].at == JOINING -> dog[me].at = ENDING }
	:: atomic { acts(me) && holding(me) && dog[me].thaw && all_read(me) ->
		assert(dog[me].thaw_for == dog[me].serves);	/* (c) */
		/* one who was kept from running may find both at once; then the time was over */
		let_go(overdue(me))
	   }
#ifndef BUG_NO_WATCHDOG
	:: atomic { acts(me) && counting(me) && dog[me].left <= TICK -> let_go(true) }
	:: atomic { acts(me) && holding(me) && dog[me].orphan && all_read(me) && !dog[me].thaw -> let_go(true) }
#endif
	:: atomic { acts(me) && dog[me].at == ENDING ->
		if
		:: dog[me].orphan -> clear(me)
		:: else ->
			dog[me].said_ended = true; dog[me].said_held = !dog[me].wrong;
			dog[me].at = OFF
		fi
	   }
	od
}

/* ---- director ---- */

inline ask(call, try) {
	want = call; want_try = try;
#ifdef REPLAY
	kept = (call == PREPARE || try == 1 -> up : kept);
	cut = !kept;
	printf("@ ask %e %d %d %d\n", want, try, kept, stopped);
	if
	:: !cut -> send(call, try)
	:: else
	fi
#else
	send(call, try)
#endif
}

inline forget() {
	want = NONE; want_try = 0;
	if
	:: reply?_, _, _
	:: empty(reply)
	fi;
#ifdef REPLAY
	cut = false; kept = false
#endif
}

#define hears outside && reachable && nempty(reply)
inline hear(x, y, z) {
	reply?x, y, z;
	see(); printf("@ pass %e %d\n", want, want_try);
	want = NONE; want_try = 0
}
#ifdef REPLAY
#define gives_up (cut && settled || outside && able && unlucky)
#else
#define gives_up true
#endif
inline give_up() {
#ifdef REPLAY
	if
	:: cut -> printf("@ lost %e %d\n", want, want_try)
	:: else -> see(); printf("@ cut %e %d\n", want, want_try); fuse = 3
	fi;
#endif
	forget()
}
#define dies outside && unlucky && (KINDS & K_DIRECTOR) && faults > 0
inline die() {
	see(); printf("@ director killed\n");
	faults--; await(false); forget()
}

active proctype Director() {
	bool ok, yes, with_app;
	byte was, is;
	atomic { ask(PREPARE, 0) }
	if
	:: atomic { hears -> hear(ok, with_app, is);
		if
		:: ok -> printf("@ placement good\n"); ask(FREEZE, 0)
		:: ok && unlucky -> printf("@ placement bad\n"); ok = false; ask(THAW, 0); goto thawing
		:: else -> printf("@ end unprepared\n"); goto end
		fi
	   }
	:: atomic { gives_up -> give_up(); printf("@ end unprepared\n"); goto end }
	:: atomic { dies -> die(); goto dead }
	fi;
	if
	:: atomic { hears -> hear(ok, with_app, was); think(true); goto answered }
	:: atomic { gives_up && (reachable || !up) -> give_up(); ok = false;
		if
		:: ask(FREEZE, 1)			/* again, on a new connection */
		:: !patient -> goto answered		/* too late for that */
		:: !patient -> send(FREEZE, 1); goto answered	/* again, though nobody waits for it */
		fi
	   }
	:: atomic { dies -> die(); goto dead }
	fi;
	if
	:: atomic { hears -> hear(ok, with_app, was); think(true) }
	:: atomic { gives_up -> give_up(); ok = false; think(true) }
	:: atomic { dies -> die(); goto dead }
	fi;
answered:
	if
	:: atomic { !ok -> think(false); was = 0; with_app = false; ask(THAW, 0); goto thawing }
	:: atomic { ok -> think(false); await(true); storage = ASKED }
	fi;
	if
#ifdef BUG_THAW_EARLY
	:: atomic { storage != NOTHING -> ask(THAW, 0) }
#else
	:: atomic { told && storage == DONE -> storage = NOTHING; think(false); await(false); ask(THAW, 0) }
	:: atomic { told && storage == REFUSED ->
		storage = NOTHING; ok = false; think(false); await(false); ask(THAW, 0)
	   }
	:: atomic { !patient && (storage == ASKED || storage == TAKEN) ->
		/* silent for as long as a lease; what it takes later is no point of this hold */
#ifndef BUG_CLAIM_LATE
		ok = false;
#endif
		storage = NOTHING; ask(THAW, 0)
	   }
#endif
	:: atomic { dies -> die(); goto dead }
	fi;
thawing:
	if
	:: atomic { hears -> hear(yes, _, is); goto judged }
	:: atomic { gives_up && (reachable || !up) -> give_up(); ask(THAW, 1) }
	:: atomic { dies -> die(); goto dead }
	fi;
	if
	:: atomic { hears -> hear(yes, _, is) }
	:: atomic { gives_up -> give_up(); yes = false }
	:: atomic { dies -> die(); goto dead }
	fi;
judged:	atomic {
#ifdef BUG_THAW_EARLY
		storage == DONE || storage == REFUSED || !ok ->
		ok = (storage == REFUSED -> false : ok);
#endif
#ifdef BUG_CLAIM_WITHOUT_ASKING
		yes = true; is = was;
#endif
#ifdef BUG_RELEASE_BY_NAME
		is = was;
#endif
		printf("@ end %d %d\n", ok && yes && was == is, with_app);
		assert(!(ok && yes && was == is) || inside);			/* (a) */
		assert(!(ok && yes && was == is && with_app) || inside_app);
		goto end
	};
dead:	/* the next start thaws what the journal names, before anything else */
	if
	:: atomic { !patient -> ask(THAW, 1) }
		if
		:: atomic { hears -> hear(_, _, _) }
		:: atomic { gives_up -> give_up() }
		fi
	:: true
	fi;
end:	atomic {
		storage = NOTHING; ok = false; yes = false; with_app = false; was = 0; is = 0;
		inside = false; inside_app = false; finished = true
	}
}

active proctype Storage() {
end:	do
	:: atomic { outside && storage == ASKED ->
		storage = TAKEN;
		inside = frozen && frozen_for == OURS;
		inside_app = inside && session == LOCKED;
		see(); printf("@ instant %d\n", frozen)
	   }
	:: atomic { outside && storage == TAKEN -> see(); printf("@ snapshot done\n"); storage = DONE; think(awaited) }
	:: atomic { outside && unlucky && storage == TAKEN -> see(); printf("@ snapshot refused\n"); storage = REFUSED; think(awaited) }
	od
}

/* ---- what befalls them ---- */

inline kill_agent() {
	up = false; stopped = false;
	state = IDLE; whose = 0; stage = REST; cancelled = false; app = false;
	job = NONE; job_hold = 0; job_try = 0; armed = 0;
	again[0] = false; again[1] = false;
	waits[0] = false; waits[1] = false; waits[2] = false;
	memory[1].past = UNKNOWN; memory[1].number = 0; memory[1].over = false; over[1] = false;
	memory[2].past = UNKNOWN; memory[2].number = 0; memory[2].over = false; over[2] = false;
	session = CLOSED;
	if
	:: alive(w) && !dog[w].orphan ->
		dog[w].orphan = true; dog[w].said_frozen = false;
		dog[w].left = (dog[w].left > TICK -> TICK : dog[w].left)
	:: dog[w].orphan	/* it served the agent before this one */
	:: else -> clear(w)
	fi;
	/* what was under way to it dies with its connections */
	net_prepare = false; net_freeze[0] = false; net_freeze[1] = false;
	net_thaw[0] = false; net_thaw[1] = false;
	if
	:: reply?_, _, _
	:: empty(reply)
	fi
#ifdef REPLAY
	; kept = false; cut = (want != NONE)
#endif
}

/* Not one whose agent has been replaced: of three processes, two killed within one freeze. See the ADR. */
#define mortal(x) (alive(x) && !(dog[x].orphan && up))
#ifdef REPLAY
#define worth_it (state != IDLE || armed == OURS)	/* most of what happens to an idle guest is dull */
#else
#define worth_it true
#endif
#define fault(which) outside && unlucky && worth_it && (KINDS & which) && faults > 0
active proctype Killer() {
	bit x;
end:	do
	:: atomic { fault(K_AGENT) && up -> faults--; see(); printf("@ agent killed\n"); kill_agent() }
	:: atomic { fault(K_WATCHDOG) && (mortal(0) || mortal(1)) ->
		if
		:: mortal(0) -> x = 0
		:: mortal(1) -> x = 1
		fi;
		faults--; see(); printf("@ watchdog killed\n"); kill_dog(x); x = 0
	   }
	:: atomic { fault(K_HANG) && (mortal(0) && acts(0) || mortal(1) && acts(1)) ->
		if
		:: mortal(0) && acts(0) -> x = 0
		:: mortal(1) && acts(1) -> x = 1
		fi;
		faults--; see(); printf("@ watchdog stopped\n"); dog[x].hung = true; x = 0
	   }
	:: atomic { outside && alive(0) && dog[0].hung -> see(); printf("@ watchdog continued\n"); dog[0].hung = false }
	:: atomic { outside && alive(1) && dog[1].hung -> see(); printf("@ watchdog continued\n"); dog[1].hung = false }
	:: atomic { fault(K_STOP) && able -> faults--; see(); printf("@ agent stopped\n"); stopped = true }
	:: atomic { may_continue && stopped -> see(); printf("@ agent continued\n"); stopped = false }
	:: atomic { fault(K_THAW) && frozen -> faults--; see(); printf("@ thawed by another\n"); frozen = false }
	:: atomic { fault(K_SESSION) && (session == OPEN || session == LOCKED) ->
		faults--; see(); printf("@ session killed\n"); session = LOST
	   }
	od
}

active proctype Systemd() {
end:	do
	:: atomic { outside && !up ->
		see(); printf("@ agent started\n"); up = true;
#ifndef BUG_LEFTOVERS
		frozen = false
#endif
	   }
	od
}

#ifdef BUG_NO_WATCHDOG
#define late(x) false
#else
#define late(x) (dog[x].left == 0 && (acts(x) && counting(x) || able && unheard(x)))
#endif
#define runs(x) (counting(x) && dog[x].left > 0)
#define limit ((leased -> LEASE : BUDGET) + TICK)
#ifndef UNTIMED
active proctype Clock() {
end:	do
	:: atomic {
		outside && unlucky && !late(0) && !late(1) && (runs(0) || runs(1) || frozen && watched) ->
		see(); printf("@ tick\n");
		dog[0].left = (dog[0].left -> dog[0].left - 1 : 0);
		dog[1].left = (dog[1].left -> dog[1].left - 1 : 0);
		age = (frozen -> (watched -> age + 1 : age) : 0);
		assert(!frozen || age <= limit)			/* (b) */
	   }
	od
}

#endif

init {
	atomic { 
	clear(0); clear(1); memory[1].past = UNKNOWN; memory[2].past = UNKNOWN;
	run Watchdog(0); run Watchdog(1);
#ifdef REPLAY
	select(fuse : 0 .. 12)
#endif
	}
}

#ifdef LIVENESS
ltl thaws { [] (frozen -> <> !frozen) }
#endif
