package reference

// fieldDocs describe fields that have no comment in their message: by Message.field, or by the name of the field alone.
var fieldDocs = map[string]string{
	"path": "Where it lies, from the root of the guest.", "owner": "A user, by name or number.", "group": "A group, by name or number.",
	"content": "Any bytes.", "parents": "Create missing parent directories.", "backup": "Keep what was there as path.bak.",
	"mode": "Octal text such as \"0644\"; what is there keeps its own unless it is said.",
	"from": "What is taken.", "to": "Where it shall be.",
	"target":         "Where the link points, taken as it is.",
	"MkdirArgs.mode": "Octal text; 0755 unless it is said.", "ChmodArgs.mode": "Octal text such as \"0644\".",
	"GlobArgs.pattern": "An absolute path in which *, ? and [a-z] stand for names.", "ReplaceArgs.pattern": "A regular expression in the syntax of RE2.",
	"AttachmentArgs.name": "The name that it was sent by.",
	"TemplateArgs.text":   "The template.", "TemplateArgs.vars": "What its names stand for.",
	"FileInfo.name": "The last element of its path.", "FileInfo.size": "Bytes.",
	"FileInfo.owner": "The name of the user, or its number.", "FileInfo.group": "The name of the group, or its number.",

	"argv": "The program and its arguments.", "command": "A line for /bin/sh.", "cwd": "Where it is run; / unless it is said.",
	"env": "Added to a clean environment.", "stdin": "What it reads.", "timeout": "Seconds; 0: what is left of the time of the script.",
	"user": "Who runs it, by name or number.", "RunArgs.group": "Its group, where that is not the user's.",
	"ShellArgs.group": "Its group, where that is not the user's.", "OnRollbackArgs.group": "Its group, where that is not the user's.",
	"check":      "Raise on a non-zero exit; true unless said otherwise.",
	"max_output": "Bytes kept of each stream; 0: 1 MiB.", "readonly": "Changes nothing.",
	"undo":    "Takes it back; must be idempotent and bear that the command never ran.",
	"touches": "Changes nothing but these paths.", "irreversible": "Cannot be taken back, and a rollback says so.",
	"unconfined": "With touches or readonly: do not hold the command to that.", "plan": "With a dry run: what the command would do.",
	"code": "The exit status; 128 and the number of a signal that ended it.", "stdout": "What it wrote.", "stderr": "What it wrote there.",
	"truncated": "More was written than is kept.",

	"mount": "Where it is mounted.", "device": "What is mounted.", "Disk.type": "Of the file system, such as ext4.",
	"total": "Bytes.", "used": "Bytes.", "available": "Bytes.", "swap_total": "Bytes.", "swap_free": "Bytes.", "memory_bytes": "Of the guest.",
	"hostname": "Its name.", "os_version": "VERSION_ID.", "os_id": "ID, such as debian.", "kernel": "Its release.",
	"architecture": "As the host spells it, such as x86_64.", "cpus": "How many there are.", "machine_id": "Of /etc/machine-id.",
	"agent_version": "Of the agent that runs the script.", "NetInterface.name": "Such as eth0.", "mac": "Its hardware address.",
	"mtu": "Bytes of its largest packet.", "up": "It is switched on.", "loopback": "It leads to the guest itself.",

	"op": "The function, such as file.write.", "TrialError.op": "The function that failed, if one did.", "TrialError.message": "What went wrong, for people.",
	"TrialError.code": "Of the error of a function, such as not_found.", "line": "Of the script.", "TrialChange.target": "A path, or a command.",
	"params": "As they would be given by -p.", "secrets": "Values by their names.", "attachments": "Files that are sent along, by name.",
	"changes": "In the order in which they were made.", "log": "Its lines.", "TrialCommandArgs.code": "Its exit status.",
}
