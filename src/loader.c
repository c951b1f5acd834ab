#include "loader.h"

#include "mailbox.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#define PATIENCE_S 2

struct loader {
	struct message message; /* first: how the thread's result comes back */
	struct loader_options options;
	struct mailbox *mailbox;
	pthread_t thread;
	bool is_busy;

	pthread_mutex_t lock; /* between a late thread and loader_stop */
	bool is_left;

	/* The thread's, until its message is delivered: */
	struct generation *generation;
	struct config_report report;
};

static void
on_done(struct message *message)
{
	struct loader *loader = (struct loader *)message;
	struct generation *generation = loader->generation;
	struct config_report report = loader->report;

	pthread_join(loader->thread, NULL);
	loader->generation = NULL;
	loader->report = (struct config_report){ 0 };
	loader->is_busy = false;
	loader->options.on_loaded(generation, &report, loader->options.context);
	config_report_release(&report);
}

static void *
run(void *context)
{
	struct loader *loader = context;

	pthread_setname_np(pthread_self(), "loader");
	loader->generation =
		config_load(loader->options.file, loader->options.services, &loader->report);
	pthread_mutex_lock(&loader->lock);
	if (!loader->is_left)
		mailbox_post(loader->mailbox, &loader->message);
	pthread_mutex_unlock(&loader->lock);
	return NULL;
}

struct loader *
loader_new(const struct loader_options *options, struct failure *why)
{
	struct loader *loader = calloc(1, sizeof(*loader));
	if (!loader) {
		failure_set(why, FAILURE_MEMORY, "no memory to load configurations");
		return NULL;
	}
	loader->mailbox = mailbox_open(options->base, why);
	if (!loader->mailbox) {
		free(loader);
		return NULL;
	}
	loader->options = *options;
	loader->message.deliver = on_done;
	pthread_mutex_init(&loader->lock, NULL);
	return loader;
}

int
loader_begin(struct loader *loader, struct failure *why)
{
	sigset_t all, before;

	/* Signals are the control thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int error = pthread_create(&loader->thread, NULL, run, loader);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error)
		return failure_set_errno(why, error, "cannot start a thread to load with");
	loader->is_busy = true;
	return 0;
}

bool
loader_is_busy(const struct loader *loader)
{
	return loader->is_busy;
}

/* Nobody waits for the result any more. */
static void
on_late(struct message *message)
{
	(void)message;
}

/* Whether the thread has ended. */
static bool
join(struct loader *loader)
{
	struct timespec by;

	clock_gettime(CLOCK_REALTIME, &by);
	by.tv_sec += PATIENCE_S;
	if (pthread_timedjoin_np(loader->thread, NULL, &by) == 0)
		return true;
	pthread_detach(loader->thread);
	return false;
}

bool
loader_stop(struct loader *loader)
{
	if (!loader)
		return true;
	pthread_mutex_lock(&loader->lock);
	loader->is_left = true;
	loader->message.deliver = on_late;
	pthread_mutex_unlock(&loader->lock);
	mailbox_close(loader->mailbox);
	if (loader->is_busy && !join(loader))
		return false;
	if (loader->generation)
		counted_release(&loader->generation->counted);
	config_report_release(&loader->report);
	pthread_mutex_destroy(&loader->lock);
	free(loader);
	return true;
}
