/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * vhost-pcictl: what its commands share. A command parses its own options,
 * asks the daemon, prints, and returns an exit status:
 *
 *   0 done; 1 the daemon refused (it says why); 2 wrong usage; 3 no daemon to talk to
 */
#ifndef VP_CLI_CLI_H
#define VP_CLI_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

enum { EXIT_REFUSED = 1, EXIT_USAGE = 2, EXIT_NO_DAEMON = 3 };

struct cli {
	const char *socket;
	bool        json;
	int         fd;     /* connected on first use; -1 before */
	int         next_id;
	char       *in;     /* bytes read ahead */
	size_t      in_len, in_cap;
};

struct cli_command {
	const char *name;
	const char *args;    /* for the usage line */
	const char *summary; /* one line */
	const char *help;    /* what --help says below the usage line */
	/* argv[0] is the command's name. */
	int (*run)(struct cli *c, int argc, char **argv);
};

/* One symbol a file cmd_*.c; main.c lists them. */
extern const struct cli_command cmd_list, cmd_show, cmd_stats, cmd_top, cmd_add, cmd_remove, cmd_up, cmd_down,
	cmd_reload, cmd_explain, cmd_events, cmd_status, cmd_profile, cmd_grant, cmd_generate, cmd_metrics, cmd_doctor,
	cmd_log_level, cmd_capture, cmd_upgrade;

/*
 * Call a method; params may be NULL (stolen). 0 and *result (new reference), or an exit status
 * after the error has been printed.
 */
int cli_call(struct cli *c, const char *method, json_t *params, json_t **result);

/* The same, and the fd that comes with the answer: the caller's, -1 when none did. On a connection of its own. */
int cli_call_fd(struct cli *c, const char *method, json_t *params, json_t **result, int *fd);

/* The same, but *result is its JSON text (the caller's, to be freed): for answers that are long. */
int cli_call_text(struct cli *c, const char *method, json_t *params, char **result);

/* The next line the daemon sends (an event). NULL at the end or after printing an error. */
json_t *cli_next(struct cli *c);

/*
 * Read --help and --json (in any place) and count what is left: exactly min to max operands, left in argv[1..].
 * -1: go on with *n operands; else the exit status.
 */
int cli_operands(struct cli *c, const struct cli_command *cmd, int argc, char **argv, int min, int max, int *n);
/*
 * A whole command whose only operand is a link: method with its name; prints the result when JSON is wanted. Exit
 * status.
 */
int cli_call_link(struct cli *c, const struct cli_command *cmd, const char *method, int argc, char **argv);

/* Print an object as JSON, indented. */
int cli_print_json(json_t *o);

/* A table on standard output: as wide as its cells, one blank between columns. NULL: out of memory, said so. */
#define CLI_COLUMNS_MAX 10
struct cli_column {
	const char *name;
	bool        right;  /* numbers */
};
struct cli_table {
	const struct cli_column *cols;
	size_t n, rows, width[CLI_COLUMNS_MAX];
	char  *cells;       /* one behind the other, each with its zero */
	size_t len, cap;
	bool   failed;
};
struct cli_table *cli_table(const struct cli_column *cols, size_t n);
/* A row; values[i] may be NULL. 0 or -ENOMEM. */
int cli_row(struct cli_table *t, const char *const *values);
/* Prints and frees it. Exit status. */
int cli_table_print(struct cli_table *t);

/*
 * Of a side in link.show's answer that nobody has connected to: who alone may open its socket, as the file says. False
 * when somebody has connected, when others may, or when that cannot be seen.
 */
bool cli_socket_closed(const json_t *side, char *owner, size_t size);

/* Members of objects, with defaults that print as "-". */
const char *cli_str(const json_t *o, const char *key);
long long cli_int(const json_t *o, const char *key);

/* KEY=VALUE words such as Driver.VM=a into the config object of link.add. NULL after an error was printed. */
json_t *cli_config(char **words, int n);

#endif
