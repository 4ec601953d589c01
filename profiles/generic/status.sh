#!/bin/sh
# Prints the state of job $1 for Snakemake: running, success or failed. For OpenPBS, where -x includes finished jobs.
facts=$(qstat -x -f "$1") || { echo running; exit; }  # the server did not answer: ask again later
case $facts in
  *"job_state = F"*)
    case $facts in
      *"Exit_status = 0"*) echo success ;;
      *) echo failed ;;
    esac ;;
  *) echo running ;;
esac
